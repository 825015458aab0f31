package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
)

// startScenario starts the daemon as PortSentry 2 that opens port 11, with more
// configuration.
func startScenario(t *testing.T, config string, args ...string) *scenario {
	t.Helper()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "portsentry.conf", commonConfig+portEleven+config)
	s.begin(t, args...)
	return s
}

// A command that fails bans nobody, and is tried again at the next probe.
func TestFailingCommand(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.script(t, "command.sh", `echo "$@" >> command.got; exit 3`)
	s.write(t, "portsentry.conf", commonConfig+portEleven+external+command)
	s.begin(t, "--connect")
	for n := range 2 {
		s.probe(t, "tcp", s.target.IPv4, 11)
		waitLines(t, s.daemon.Stderr, n+1, "attackalert: Error during target dispose 192.0.2.1/192.0.2.1!")
		waitLines(t, s.daemon.Stdout, n+1, "noblock: [false] blocked: [false]")
	}
	s.end(t)
	s.holds(t, "command.got", "192.0.2.1 11\n192.0.2.1 11\n")
	if got := countLines(s.daemon.Stderr, `KILL_RUN_CMD: command failed: exit status 3: "./command.sh 192.0.2.1 11"`); got < 2 {
		t.Errorf("the failure is told %d times, want once for each probe", got)
	}
	if got := countLines(s.daemon.Stdout, "External command run"); got != 0 {
		t.Errorf("%d lines say that the command was run, want none", got)
	}
	s.size(t, 0, 0)
}

// To PortSentry every command succeeds. Who wants that back has it.
func TestFailingCommandThatCountsAsDone(t *testing.T) {
	t.Parallel()
	s := startScenario(t, external+`KILL_RUN_CMD="exit 3 # $TARGET$ $PORT$ $MODE$"`+"\n"+`KILL_IGNORE_STATUS="1"`+"\n", "--connect")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.inOrder(t, `^attackalert: External command run for host: 192.0.2.1 using command: "exit 3 # 192.0.2.1 11 connect"$`, `^Scan from: .* blocked: \[true\]$`)
	s.size(t, 1, 0)
	s.end(t)
}

// At the stop even a command that takes no hint is ended in time for the lines of
// the probe that led to it, and of those that waited behind it.
func TestStopDespiteADeafCommand(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.script(t, "command.sh", `echo $$ > command.pid; trap '' TERM INT HUP; while :; do sleep 1; done`)
	s.write(t, "portsentry.conf", commonConfig+portEleven+`BLOCK_TCP="2"`+"\n"+command)
	s.begin(t, "--connect")
	s.probe(t, "tcp", s.target.IPv4, 11)
	nettest.WaitFor(t, "the command", func() bool { return strings.HasSuffix(s.read(t, "command.pid"), "\n") })
	s.probe(t, "udp", s.target.IPv4, 11)
	s.end(t)
	waitLines(t, s.daemon.Stderr, 1, "attackalert: Error during target dispose 192.0.2.1/192.0.2.1!")
	waitLines(t, s.daemon.Stdout, 1, "protocol: [TCP] port: [11] type: [Connect] IP opts: [unknown] ignored: [false] triggered: [true] noblock: [false] blocked: [false]")
	waitLines(t, s.daemon.Stdout, 1, "protocol: [UDP] port: [11] type: [Connect] IP opts: [unknown] ignored: [false] triggered: [true] noblock: [true] blocked: [false]")
}

// While a command runs, packets of others are captured and reported afterwards.
func TestNothingIsLostWhileACommandRuns(t *testing.T) {
	const others = 1000
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	gate := filepath.Join(s.dir, "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	s.write(t, "portsentry.conf", commonConfig+portEleven+`BLOCK_TCP="2"`+"\n"+`KILL_RUN_CMD="cat gate"`+"\n")
	s.begin(t)
	s.probe(t, "tcp", s.target.IPv4, 11)
	open, err := os.OpenFile(gate, os.O_WRONLY, 0) // once the command has opened it
	if err != nil {
		t.Fatal(err)
	}
	sendDatagrams(t, s.scanner, netip.AddrPortFrom(s.target.IPv6, 11), others)
	if got := countLines(s.daemon.Stdout, "Scan from:"); got != 0 {
		t.Errorf("%d reports while the command runs, want none before its own", got)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	waitLines(t, s.daemon.Stdout, others, "Scan from: [2001:db8::1]")
	s.end(t)
	if got := countLines(s.daemon.Stdout, "Scan from:"); got != others+1 {
		t.Errorf("%d reports, want %d", got, others+1)
	}
}

// sendDatagrams sends datagrams to a port that nobody has opened.
func sendDatagrams(t *testing.T, host *nettest.Host, to netip.AddrPort, n int) {
	t.Helper()
	var conn net.PacketConn
	var err error
	host.Do(t, func() { conn, err = net.ListenPacket("udp", "[::]:0") })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range n {
		if _, err := conn.WriteTo([]byte("who is there"), net.UDPAddrFromAddrPort(to)); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody can have the host cut itself off from its gateway.
func TestGatewayIsNeverBlocked(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.target.Run(t, "ip", "route", "add", "default", "via", s.scanner.IPv4.String())
	s.script(t, "route.sh", "echo > route.got")
	s.write(t, "portsentry.conf", commonConfig+portEleven+block+fileRoute)
	s.begin(t)
	for n := range 2 {
		s.probe(t, "tcp", s.target.IPv4, 11)
		waitLines(t, s.daemon.Stderr, n+1, "attackalert: Host 192.0.2.1 is not blocked: never banned: gateway")
		waitLines(t, s.daemon.Stdout, n+1, "noblock: [false] blocked: [false]")
	}
	s.size(t, 0, 0)
	s.probe(t, "tcp", s.target.IPv6, 11)
	s.blocked(t, "TCP", s.scanner.IPv6)
	s.end(t)
	s.size(t, 0, 1)
}

// TCP wrappers know an IPv6 address by its brackets.
func TestIPv6InHostsDeny(t *testing.T) {
	t.Parallel()
	s := startScenario(t, block+hostsDeny, "--connect")
	s.write(t, "etc/hosts.deny", "sshd: ALL") // without a newline, as some editors leave it
	s.probe(t, "tcp", s.target.IPv6, 11)
	s.inOrder(t, `^attackalert: Host 2001:db8::1 has been blocked via wrappers with string: "ALL: \[2001:db8::1\] : DENY"$`, `^Scan from: \[2001:db8::1\] .* blocked: \[true\]$`)
	s.holds(t, "etc/hosts.deny", "sshd: ALL\nALL: [2001:db8::1] : DENY\n")
	s.end(t)
}

// What stands in hosts.deny already counts as blocked; what cannot be edited does
// not. PortSentry 1.2 makes the file if there is none.
func TestHostsDenyOfBothGenerations(t *testing.T) {
	const ours = "ALL: 192.0.2.1 : DENY\n"
	for name, tt := range map[string]struct {
		word    string // of PortSentry 1.2; "": PortSentry 2
		before  string
		mode    os.FileMode // 0: there is no file
		said    string
		blocked bool
	}{
		"2, present":          {"", ours, 0o644, "Host 192.0.2.1 already in hosts.deny file, skipping.", true},
		"2, missing":          {"", "", 0, "Cannot stat file /etc/hosts.deny: No such file or directory", false},
		"2, world-writable":   {"", "", 0o666, "File /etc/hosts.deny is world-writable, refusing to modify", false},
		"1.2, present":        {"-tcp", ours, 0o644, `attackalert: Host 192.0.2.1 has been blocked via wrappers with string: "ALL: 192.0.2.1 : DENY"`, true},
		"1.2, missing":        {"-tcp", "", 0, `attackalert: Host 192.0.2.1 has been blocked via wrappers with string: "ALL: 192.0.2.1 : DENY"`, true},
		"1.2, world-writable": {"-tcp", "", 0o666, "adminalert: File /etc/hosts.deny is world-writable, refusing to modify", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSentry1(t, block+hostsDeny)
			file := filepath.Join(s.dir, "etc/hosts.deny")
			err := os.Remove(file)
			if tt.mode != 0 {
				s.write(t, "etc/hosts.deny", tt.before)
				err = os.Chmod(file, tt.mode)
			}
			if err != nil {
				t.Fatal(err)
			}
			said, result := s.syslog, "Could not block"
			if tt.word != "" {
				s.begin(t, tt.word)
			} else {
				s.write(t, "portsentry.conf", commonConfig+portEleven+block+hostsDeny)
				daemon := s.start(t, strings.Fields("--connect -l syslog -c portsentry.conf")...)
				s.syslog.WaitLine(t, "is now active")
				defer stopWithin(t, daemon, endLimit)
				result = fmt.Sprintf("blocked: [%v]", tt.blocked)
			}
			s.probe(t, "tcp", s.target.IPv4, 11)
			said.WaitLine(t, "]: "+tt.said)
			if tt.word == "" || !tt.blocked {
				said.WaitLine(t, result)
			}
			want := tt.before
			if tt.blocked {
				want = ours
			}
			s.holds(t, "etc/hosts.deny", want)
			if tt.word != "" {
				s.end(t)
			}
		})
	}
}

// A file of blocked sources that ends in the middle of a record, or goes on with
// something else, is told of and mended. What it says before that counts.
func TestDamagedBlockedFile(t *testing.T) {
	const held = "\x02\x00\xc0\x00\x02\x01" // 192.0.2.1
	for name, tt := range map[string]struct{ rest, said string }{
		"torn record":    {"\x02\x00\xc0", "Unable to read address from blocked file: portsentry.blocked"},
		"unknown family": {"\x63\x00\xc0\x00\x02\x01", "Unsupported address family: 99"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scenario{sentry: newSentry(t)}
			s.write(t, "portsentry.conf", commonConfig+portEleven+block+trueRoute)
			s.write(t, "portsentry.blocked", held+tt.rest)
			s.begin(t)
			if got := s.daemon.Stderr.Lines(); len(got) == 0 || got[0] != tt.said {
				t.Errorf("standard error has %q, want first %q", got, tt.said)
			}
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.alreadyBlocked(t, s.scanner.IPv4)
			s.end(t)
			s.holds(t, "portsentry.blocked", held)
		})
	}
}
