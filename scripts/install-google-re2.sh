#!/usr/bin/env bash
# Installs RE2 with its Python binding, which a test compares the patterns of policies with.
set -eu
place=$1/re2
"$place/bin/python" -c 'import re2' 2>/dev/null && exit 0
rm -rf "$place"
python3 -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check google-re2==1.1.20251105
