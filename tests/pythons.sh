#!/bin/sh
# Inside of a Debian sid (make pythons): its Pythons, and the tests on them.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
wanted="make git gcc libc6-dev redis-server nginx haproxy iproute2"
for version in 3.13 3.14 3.15; do
	wanted="$wanted python$version-venv python$version-dev"
done
# shellcheck disable=SC2086  # a list of packages
apt-get install -y -qq --no-install-recommends $wanted >/dev/null
# Its environments are of this system, and not of the one around it.
test -x /root/nox/bin/nox || {
	python3 -m venv /root/nox
	/root/nox/bin/pip install -q --disable-pip-version-check nox
}
exec /root/nox/bin/nox --envdir /root/environments -s interpreters core modes
