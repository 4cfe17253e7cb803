#!/bin/sh
# Process 1 of the guest. Loads the modules, puts a writable layer over the two read-only images
# (Debian, the project's tree), names the NICs, runs /run.sh there, says its exit status on the
# port lab.status, and powers off. /settings comes with each run.
PATH=/bin
for applet in mount mkdir cat insmod sleep ip chroot poweroff sync ln cp cut; do
    eval "$applet() { /bin/busybox $applet \"\$@\"; }"
done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

say() { echo "lab: $(cut -d' ' -f1 /proc/uptime) $*" >/dev/console; }
give_up() {
    say "FAILED: $*"
    poweroff -f
}

while read -r module; do
    insmod "/modules/$module.ko" || say "the module $module can't be loaded"
done </modules/order
# TREE: where the project lies; NICS: NAME=MAC ...; OUT: the shared directory, or nothing; LAYERS:
# images over Debian's.
. /settings

# The disk with this serial number.
disk() {
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for block in /sys/block/vd*; do
            if [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ]; then
                echo "/dev/${block##*/}"
                return
            fi
        done
        sleep 0.1
    done
}

# writable PLACE SERIAL [SERIAL ...]: the images below, the last one lowest; memory above.
writable() {
    place=$1
    shift
    memory=/layers/memory/$1
    lower=
    mkdir -p "$memory" "$place"
    mount -t tmpfs -o size=50% tmpfs "$memory"
    mkdir "$memory/changes" "$memory/scratch"
    for serial in "$@"; do
        mkdir -p "/layers/$serial"
        mount -t erofs -o ro "$(disk "$serial")" "/layers/$serial" || give_up "no image $serial"
        lower=$lower:/layers/$serial
    done
    mount -t overlay -o "lowerdir=${lower#:},upperdir=$memory/changes,workdir=$memory/scratch" \
        overlay "$place" || give_up "no overlay for $place"
}

writable /guest $LAYERS debian
mkdir -p /guest/proc /guest/sys /guest/dev /guest/run /guest/tmp /guest/root
mount -t proc proc /guest/proc
mount -t sysfs sysfs /guest/sys
mount -t devtmpfs devtmpfs /guest/dev
mkdir -p /guest/dev/pts /guest/dev/shm
mount -t devpts devpts /guest/dev/pts
mount -t tmpfs tmpfs /guest/dev/shm
mount -t tmpfs tmpfs /guest/run
mount -t tmpfs -o mode=1777 tmpfs /guest/tmp
mount -t bpf bpf /guest/sys/fs/bpf
mount -t debugfs debugfs /guest/sys/kernel/debug
mount -t tracefs tracefs /guest/sys/kernel/tracing
rm -rf /guest/var/run && ln -s /run /guest/var/run
mkdir -p /guest/run/netns
ln -sf /proc/self/fd /guest/dev/fd
writable "/guest$TREE" tree
cp /run.sh /guest/run.sh

if [ -n "$OUT" ]; then
    mkdir -p "/guest$OUT"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 lab.out "/guest$OUT" ||
        give_up "no shared directory"
fi

echo lab >/proc/sys/kernel/hostname
ip link set lo up
for nic in $NICS; do
    for try in 1 2 3 4 5 6 7 8 9 10; do
        for link in /sys/class/net/*; do
            if [ "$(cat "$link/address")" = "${nic#*=}" ]; then
                ip link set "${link##*/}" name "${nic%%=*}"
                break 2
            fi
        done
        sleep 0.1
    done
    [ -e "/sys/class/net/${nic%%=*}" ] || give_up "no NIC ${nic#*=}"
done

port() {
    for one in /sys/class/virtio-ports/*; do
        if [ "$(cat "$one/name")" = "$1" ]; then echo "/dev/${one##*/}"; fi
    done
}
chroot /guest /sbin/ldconfig # a package's script would have
say "the command starts"
chroot /guest /bin/bash /run.sh >"$(port lab.output)" 2>&1 </dev/null
status=$?
say "the command ended with $status"
echo $status >"$(port lab.status)"
sync
poweroff -f
