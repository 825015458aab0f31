#!/bin/bash
# Shows Portsnare at work: two throw-away hosts, a real nmap on one, Portsnare
# with its embedded default on the other. `make demo` runs it.
#
# The hosts live in mount, network and process namespaces of the script's own,
# so whatever ends it, the kernel takes everything with it.
set -euo pipefail

if [[ ${1-} != inside ]]; then
	cd "$(dirname "$0")/.."
	PATH=$PATH:/usr/sbin:/sbin
	if [[ $(id -u) -ne 0 ]]; then
		echo "The demo makes network namespaces, which needs root: run 'sudo env PATH=\"\$PATH\" make demo'" >&2
		exit 1
	fi
	for tool in ip nmap; do
		if ! command -v "$tool" >/dev/null; then
			echo "The demo needs $tool: run 'apt-get install iproute2 nmap'" >&2
			exit 1
		fi
	done
	make --no-print-directory build
	exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" inside
fi

# From here on we are process 1 of our own world.
trap 'exit 130' INT TERM
mount -t tmpfs demo /run
ip netns add scanner
ip netns add target
ip link add eth0 netns scanner type veth peer name eth0 netns target

on() { # HOST COMMAND...
	nsenter --net="/run/netns/$1" -- "${@:2}"
}
number=1
for host in scanner target; do
	on $host ip link set lo up
	on $host ip link set eth0 up
	on $host ip address add 192.0.2.$number/24 dev eth0
	on $host ip address add 2001:db8::$number/64 dev eth0 nodad
	number=2
done

fail() {
	echo "demo: $1; the log:" >&2
	cat /run/log >&2
	exit 1
}

wait_for() { # FILE LINES PATTERN: up to 5 s for so many lines that match
	for _ in {1..100}; do
		if [[ $(grep -c -- "$3" "$1") -ge $2 ]]; then
			return
		fi
		sleep 0.05
	done
	fail "no line '$3'"
}

said=0
scan() { # LINES NMAP-ARGUMENT...: scans, then shows what Portsnare says, LINES lines
	printf '\n$ nmap -n -Pn %s\n' "${*:2}"
	on scanner nmap -n -Pn "${@:2}" | sed -n 's/^[0-9]/   &/p'
	wait_for /run/lines $((said + $1)) 'Scan from'
	echo "Portsnare says:"
	if [[ $1 -eq 0 ]]; then
		echo "   nothing"
	fi
	tail -n "+$((said + 1))" /run/lines | sed 's/^/   /'
	said=$(wc -l </run/lines)
}

touch /run/lines /run/log
on target perl -MIO::Socket::INET -e '
	$socket = IO::Socket::INET->new(LocalPort => 1080, Listen => 9) or die;
	print STDERR "SOCKS server is up\n";
	sleep' 2>>/run/log &
wait_for /run/log 1 'SOCKS server is up'
nsenter --net=/run/netns/target -- bin/portsnared >/run/lines 2>>/run/log &
daemon=$! # its own process ID, so that it gets the signal
wait_for /run/log 1 'is active'

echo "Host 192.0.2.2 runs Portsnare and a SOCKS server on port 1080; 192.0.2.1 scans it."
scan 3 -sS -p 1,23,79 192.0.2.2
scan 1 -sX -p 31337 192.0.2.2
scan 1 -sU -p 17 192.0.2.2
scan 2 -6 -sS -p 7,5555 2001:db8::2
printf '\nA real service, and a port that is not on the list, are no traps:'
scan 0 -sS -p 443,1080 192.0.2.2

kill "$daemon"
wait "$daemon"
if [[ $(grep -c 'Scan from' /run/lines) -ne $said ]]; then
	fail "Portsnare said more after that"
fi
