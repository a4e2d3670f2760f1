#!/usr/bin/env bash
# Runs every test and closes with one line: N passed, N failed, N skipped.
# A test that cannot run here prints "skipped: reason" and is counted as skipped, not as passed.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --workspace --locked --no-fail-fast -- --show-output 2>&1 | tee "$log" | grep -v -E '^(running 0 tests|test result: ok\. 0 passed.*)$'
status=${PIPESTATUS[0]}
sum() { grep -E '^test result:' "$log" | grep -oE "[0-9]+ $1" | awk '{n += $1} END {print n + 0}'; }
skipped=$(grep -c '^skipped: ' "$log")
passed=$(($(sum passed) - skipped))
failed=$(sum failed)
# A crate that did not compile, or a test binary that died, counts as a failure even if no test says so.
[ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
grep '^skipped: ' "$log" | sort | uniq -c
echo "$passed passed, $failed failed, $((skipped + $(sum ignored))) skipped"
[ "$failed" -eq 0 ]
