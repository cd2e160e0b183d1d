"""`python -m feeb_pipelines.cli`: the same as `feeb`."""

from feeb_pipelines.cli import main

main()
