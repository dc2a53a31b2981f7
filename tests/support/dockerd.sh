#!/bin/sh
# dockerd.sh FOLDER: a container engine at FOLDER/engine.sock. It ends when the standard input is closed, so also when
# whoever started it was killed, and takes back what it did to the network of this machine.
set -u
folder=$1
links=" $(ls /sys/class/net | tr '\n' ' ') "
forward=$(cat /proc/sys/net/ipv4/ip_forward)
policy=$(iptables -S FORWARD | head -n 1)
exec 3<&0
dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" -H "unix://$folder/engine.sock" 3<&- &
daemon=$!
{ read -r _; kill "$daemon"; } <&3 &
watcher=$!
wait "$daemon"
kill "$watcher" 2>/dev/null

sed -n "s|^[^ ]* \($folder/[^ ]*\) .*|\1|p" /proc/mounts | sort -r | while read -r mount; do umount "$mount"; done
pgrep -x dockerd > /dev/null && exit  # the rules of another engine look the same
for tables in iptables ip6tables; do
    for table in filter nat; do
        $tables-save -t $table | sed -n '/^-A.*\(DOCKER\| docker0\| br-\)/s/^-A/-D/p' | while read -r rule; do
            $tables -t $table $rule
        done
        for chain in $($tables-save -t $table | sed -n 's/^:\(DOCKER[^ ]*\) .*/\1/p'); do
            $tables -t $table -X "$chain"
        done
    done
done
iptables $policy
echo "$forward" > /proc/sys/net/ipv4/ip_forward
for link in $(ls /sys/class/net); do
    case "$links" in *" $link "*) continue ;; esac
    case $link in docker0 | br-*) ip link delete "$link" ;; esac
done
