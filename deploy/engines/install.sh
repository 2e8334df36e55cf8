#!/bin/sh
# Installs the engine packages of the lock file into node_modules beside this
# script, or does nothing when they already are the lock file's.
#
# Install scripts are off (--ignore-scripts): npm checks the packages against
# the integrity hashes of the lock file, and Tallystick checks the binaries
# against the SHA-256 sums pinned in internal/embedded before it runs them.
set -eu
cd "$(dirname "$0")"

# The copy of the lock file is written last, so it marks a complete install.
stamp=node_modules/.installed-lock.json
if cmp -s package-lock.json "$stamp"; then
	exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
	echo "engines: npm is needed to install the embedded engines (Node.js 18 or later)." >&2
	echo "engines: without it, give the DSNs of running servers in the configuration." >&2
	exit 1
fi
npm ci --ignore-scripts --no-audit --no-fund --prefer-offline
cp package-lock.json "$stamp"
