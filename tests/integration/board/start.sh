# Start a board: a Debian with an sshd, in namespaces of its own, that nobody else can reach.
# Arguments: its rootfs, which stays as it is; an empty folder to mount on; a folder with the keys.
set -e
keys=$3
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount --rbind /dev dev
mount -t proc proc proc
mount -t tmpfs tmpfs run
mkdir -p run/sshd boot/firmware lib/modules
# As a Pi's, its boot partition is a file system of its own.
mount -t tmpfs tmpfs boot/firmware
# The kernel that runs is the host's; the board says what the test wants it to be.
mv usr/bin/uname usr/bin/uname.real
cat >usr/bin/uname <<'END'
#!/bin/sh
case $1 in
-r) exec cat /etc/kernel-release ;;
-m) echo aarch64 ;;
*) exec uname.real "$@" ;;
esac
END
chmod 755 usr/bin/uname
chroot . useradd --create-home --password '*' --shell /bin/bash pi
chroot . useradd --create-home --password '*' stranger
echo 'pi ALL=(ALL) NOPASSWD: ALL' >etc/sudoers.d/pi
for home in root home/pi home/stranger; do
    mkdir -p $home/.ssh
    cp "$keys/key.pub" $home/.ssh/authorized_keys
done
install -m 600 "$keys/host-key" run/host-key
chroot . ip link set lo up
exec chroot . /usr/sbin/sshd -D -e -h /run/host-key -o StrictModes=no -o UsePAM=no
