"""The contract of every seam, as named checks that anyone can run on their own part.

    from feebcore.testing import check_part
    for result in check_part("attentions", "mine"):
        print(result)

framework.py runs checks; the other files hold them, a file for each family of seams.
"""

from feebcore.testing.framework import Candidate, Check, CheckResult, candidate, check_part, checks_for, run_check

__all__ = ["Candidate", "Check", "CheckResult", "candidate", "check_part", "checks_for", "run_check"]
