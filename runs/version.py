"""The version of this project: in the record of every run, in `--version` of every program, in CHANGELOG.md."""

VERSION = "0.1.0"
