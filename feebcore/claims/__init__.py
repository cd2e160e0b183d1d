"""Claims: sentences that a study's runs agree with, disagree with, or cannot tell; one page a study."""
