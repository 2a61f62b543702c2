"""Deployment files checked without a cluster: what Ray, KubeRay and the clouds accept silently and should not.

Knows files as data. Nothing here talks to a cloud, a cluster or a registry, and Ray itself is not imported.
"""

from cong.cluster.check import check_file, find_problems
from cong.cluster.problem import Problem

__all__ = ["Problem", "check_file", "find_problems"]
