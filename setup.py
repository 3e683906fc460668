"""Packages of the distribution: those of the tree, and `conf/`, which is installed as `orchestrator/conf`."""

from setuptools import find_packages, setup

CODE = ["orchestrator*", "models*", "sidecar*"]

setup(packages=[*find_packages(include=CODE), "orchestrator.conf"], package_dir={"orchestrator.conf": "conf"})
