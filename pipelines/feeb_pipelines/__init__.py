"""The Prefect edge: flows, deployments, the embedded server and the `feeb` command line."""
