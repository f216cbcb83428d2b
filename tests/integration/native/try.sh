# Installs packages, builds one of its own, and installs that: in `rbuild shell --scratch`.
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q -y install --no-install-recommends dpkg-dev hello
hello
cp -r /module /tmp/native
cd /tmp/native
dpkg-buildpackage --no-check-builddeps --build=binary --unsigned-source --unsigned-changes
dpkg -i ../native_1.0_arm64.deb
native
