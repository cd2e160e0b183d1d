"""Many runs: what they are (runs), who has which (ledger), where they are built (executors), and the loop over them (run)."""
