#!/usr/bin/env python3
"""Check that every dependency in Cargo.lock comes under a licence that may be shipped in one binary."""
import json
import re
import subprocess
import sys

ALLOWED = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "Unlicense",
           "CC0-1.0", "0BSD", "BSL-1.0", "MPL-2.0", "MIT-0", "CDLA-Permissive-2.0", "NCSA"}
metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], capture_output=True, text=True, check=True).stdout)
refused = []
for package in metadata["packages"]:
    expression = (package["license"] or "").replace("/", " OR ")
    # An OR-expression is fine if one of its sides is; an AND-expression needs all.
    sides = [set(re.split(r"\s+AND\s+", side.strip(" ()"))) for side in re.split(r"\s+OR\s+", expression)]
    flat = [{term.strip(" ()") for term in side} for side in sides]
    if not any(side <= ALLOWED for side in flat):
        refused.append(f"{package['name']} {package['version']}: {package['license']}")
if refused:
    sys.exit("licences that are not allowed:\n  " + "\n  ".join(refused))
print(f"{len(metadata['packages'])} packages, all licences allowed")
