package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portsnare/portsnare/internal/nettest"
)

// How long PortSentry may take until it is ready, and to end.
const (
	readyLimit = 15 * time.Second
	endLimit   = 10 * time.Second
)

// A scenario is a run of the daemon as PortSentry 2 on a host of its own.
type scenario struct {
	*sentry
	daemon *nettest.Process
}

// commonConfig is what all scenarios begin their portsentry.conf with.
const commonConfig = `HISTORY_FILE="portsentry.history"
BLOCKED_FILE="portsentry.blocked"
`

// What more they have.
const (
	portEleven = `TCP_PORTS="11"` + "\n" + `UDP_PORTS="11"` + "\n"
	block      = `BLOCK_TCP="1"` + "\n" + `BLOCK_UDP="1"` + "\n"
	external   = `BLOCK_TCP="2"` + "\n" + `BLOCK_UDP="2"` + "\n"
	trueRoute  = `KILL_ROUTE="true $TARGET$"` + "\n"
	fileRoute  = `KILL_ROUTE="./route.sh $TARGET$"` + "\n"
	command    = `KILL_RUN_CMD="./command.sh $TARGET$ $PORT$"` + "\n"
	hostsDeny  = `KILL_HOSTS_DENY="ALL: $TARGET$ : DENY"` + "\n"
	banner     = `PORT_BANNER="Go away."` + "\n"
)

// The 34 scenarios by which PortSentry 2 tests itself, under its numbers. Each
// runs the daemon with its command line and portsentry.conf, and probes it from
// the other host.
func TestScenariosOfPortSentry2(t *testing.T) {
	const notOurs = "/etc/hosts.deny"
	before := readFile(t, notOurs)
	t.Cleanup(func() {
		if after := readFile(t, notOurs); after != before {
			t.Errorf("%s of this machine was %q and is %q", notOurs, before, after)
		}
	})
	tests := map[string]struct {
		args, config string
		run          func(t *testing.T, s *scenario)
		ignore       string // the ignore file
	}{
		"001 connect, TCP and UDP": {"--connect -d", portEleven + block + trueRoute, func(t *testing.T, s *scenario) {
			s.blocks(t, "tcp", "Connect")
			s.probe(t, "udp", s.target.IPv4, 11)
			s.probe(t, "udp", s.target.IPv4, 11)
			s.scans(t, "TCP", 2, "Connect")
			s.scans(t, "UDP", 2, "Connect")
		}, ""},
		"002 connect, UDP and TCP": {"--connect -d", portEleven + block + trueRoute, func(t *testing.T, s *scenario) {
			s.blocks(t, "udp", "Connect")
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.scans(t, "UDP", 2, "Connect")
			s.scans(t, "TCP", 2, "Connect")
		}, ""},
		"003 banner, TCP": {"--connect", portEleven + block + trueRoute + banner, func(t *testing.T, s *scenario) {
			for range 2 { // the second time as one who is blocked already
				if got := s.probe(t, "tcp", s.target.IPv4, 11); got != "Go away." {
					t.Errorf("the connection says %q, want the banner", got)
				}
			}
			s.blocked(t, "TCP", s.scanner.IPv4)
			s.alreadyBlocked(t, s.scanner.IPv4)
		}, ""},
		"004 banner, UDP": {"--connect", portEleven + block + trueRoute + banner, func(t *testing.T, s *scenario) {
			if got := askUDP(t, s.scanner, netip.AddrPortFrom(s.target.IPv4, 11)); got != "Go away." {
				t.Errorf("the answer is %q, want the banner", got)
			}
			s.blocked(t, "UDP", s.scanner.IPv4)
			s.probe(t, "udp", s.target.IPv4, 11)
			s.alreadyBlocked(t, s.scanner.IPv4)
		}, ""},
		"005 connect, log only, TCP": {"--connect", portEleven, func(t *testing.T, s *scenario) { s.logsOnly(t, "tcp", "Connect") }, ""},
		"006 connect, log only, UDP": {"--connect", portEleven, func(t *testing.T, s *scenario) { s.logsOnly(t, "udp", "Connect") }, ""},
		"007 external command, TCP":  {"--connect", portEleven + external + command, func(t *testing.T, s *scenario) { s.runsCommand(t, "tcp") }, ""},
		"008 external command, UDP":  {"--connect", portEleven + external + command, func(t *testing.T, s *scenario) { s.runsCommand(t, "udp") }, ""},
		"009 trigger": {"--connect", portEleven + block + trueRoute + `SCAN_TRIGGER="2"` + "\n", func(t *testing.T, s *scenario) {
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.line(t, `^Scan from: .* type: \[Connect\] IP opts: \[unknown\] ignored: \[false\] triggered: \[false\] noblock: \[unset\]`)
			s.size(t, 0, 0)
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.blocked(t, "TCP", s.scanner.IPv4)
			s.line(t, `^Scan from: .* triggered: \[true\]`)
			s.size(t, 1, 0)
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.alreadyBlocked(t, s.scanner.IPv4)
		}, ""},
		"010 route": {"--connect", portEleven + block + fileRoute, func(t *testing.T, s *scenario) {
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.inOrder(t, `^attackalert: Host 192.0.2.1 has been blocked via dropped route using command: "./route.sh 192.0.2.1"$`, `^Scan from: `)
			s.holds(t, "route.got", "192.0.2.1\n")
			s.size(t, 1, 0)
		}, ""},
		"011 route and command": {"--connect", portEleven + block + fileRoute + command, func(t *testing.T, s *scenario) {
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.inOrder(t, `^attackalert: Host .* dropped route`, `^attackalert: External command run`, `^Scan from: `)
		}, ""},
		"012 command first": {"--connect", portEleven + block + fileRoute + command + `KILL_RUN_CMD_FIRST="1"` + "\n", func(t *testing.T, s *scenario) {
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.inOrder(t, `^attackalert: External command run`, `^attackalert: Host .* dropped route`, `^Scan from: `)
		}, ""},
		"013 route and hosts.deny": {"--connect", portEleven + block + fileRoute + hostsDeny, func(t *testing.T, s *scenario) {
			s.probe(t, "tcp", s.target.IPv4, 11)
			s.inOrder(t, `^attackalert: Host 192.0.2.1 has been blocked via wrappers with string: "ALL: 192.0.2.1 : DENY"$`, `^attackalert: Host .* dropped route`, `^Scan from: `)
			s.holds(t, "etc/hosts.deny", "ALL: 192.0.2.1 : DENY\n")
			s.size(t, 1, 0)
		}, ""},
		"014 pcap, TCP": {"--stealth -m pcap -d -i ALL -L", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sT", "TCP SYN/Normal scan") }, ""},
		"015 pcap, UDP": {"--stealth -m pcap -d -i ALL -L", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sU", "UDP") }, ""},
		"016 local check": {"--stealth -m pcap -d -i ALL", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) {
			probeFrom(t, s.target, "tcp", netip.MustParseAddrPort("127.0.0.1:11"))
			s.inOrder(t, `^debug: Source address 127.0.0.1 same as destination address 127.0.0.1, skipping$`, `^Scan from: .* ignored: \[true\] triggered: \[true\] noblock: \[true\] blocked: \[false\]$`)
		}, ""},
		"018 SYN":                   {"--stealth -m pcap", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sS", "TCP SYN/Normal scan") }, ""},
		"019 NULL":                  {"--stealth -m pcap", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sN", "TCP NULL scan") }, ""},
		"020 XMAS":                  {"--stealth -m pcap", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sX", "TCP XMAS scan") }, ""},
		"021 FIN":                   {"--stealth -m pcap", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sF", "TCP FIN scan") }, ""},
		"023 connect, ranges":       {"--connect", rangesConfig, func(t *testing.T, s *scenario) { s.watchesRanges(t, "Connect", "Connect") }, ""},
		"024 pcap, ranges":          {"--stealth -m pcap", rangesConfig, func(t *testing.T, s *scenario) { s.watchesRanges(t, "TCP SYN/Normal scan", "UDP") }, ""},
		"025 pcap, other port":      {"--stealth -m pcap", portEleven, leavesOtherPorts, ""},
		"026 connect, other port":   {"--connect", portEleven, leavesOtherPorts, ""},
		"027 raw, other port":       {"--stealth -m raw", portEleven, leavesOtherPorts, ""},
		"028 connect, IPv6":         {"--connect", portEleven + block + trueRoute, blocksIPv6, ""},
		"029 pcap, IPv6":            {"--stealth -m pcap", portEleven + block + trueRoute, blocksIPv6, ""},
		"030 raw, IPv6":             {"--stealth -m raw", portEleven + block + trueRoute, blocksIPv6, ""},
		"031 ignored prefix, IPv4":  {"--stealth -m pcap -v", ignoring, ignoresIPv4, "192.0.2.1/32"},
		"032 ignored address, IPv4": {"--stealth -m pcap -v", ignoring, ignoresIPv4, "192.0.2.1"},
		"033 ignored prefix, IPv6":  {"--stealth -m pcap -v", ignoring, ignoresIPv6, "2001:db8::1/128"},
		"034 ignored address, IPv6": {"--stealth -m pcap -v", ignoring, ignoresIPv6, "2001:db8::1"},
		"100 raw, TCP":              {"--stealth -m raw -L", portEleven + block + hostsDeny, func(t *testing.T, s *scenario) { s.blocks(t, "-sT", "TCP SYN/Normal scan") }, ""},
		"101 raw, ranges":           {"--stealth -m raw", rangesConfig, func(t *testing.T, s *scenario) { s.watchesRanges(t, "TCP SYN/Normal scan", "UDP") }, ""},
	}
	if len(tests) != 34 {
		t.Errorf("%d scenarios, want 34", len(tests))
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scenario{sentry: newSentry(t)}
			s.write(t, "portsentry.conf", commonConfig+tt.config)
			s.script(t, "route.sh", `echo "$@" > route.got`)
			s.script(t, "command.sh", `echo "$@" > command.got`)
			s.write(t, "portsentry.ignore", tt.ignore)
			s.begin(t, strings.Fields(tt.args)...)
			tt.run(t, s)
			s.end(t)
		})
	}
}

const (
	rangesConfig = `TCP_PORTS="1,5-11"` + "\n" + `UDP_PORTS="1,7-11"` + "\n"
	ignoring     = portEleven + block + hostsDeny + `IGNORE_FILE="portsentry.ignore"` + "\n"
)

// begin starts the daemon and waits until it says that it is ready.
func (s *scenario) begin(t *testing.T, args ...string) {
	t.Helper()
	began := time.Now()
	s.daemon = s.start(t, append(args, "-c", "portsentry.conf")...)
	s.daemon.Stdout.WaitLine(t, "Portsentry is now active and listening.")
	if took := time.Since(began); took > readyLimit {
		t.Errorf("ready after %v, want at most %v", took, readyLimit)
	}
}

// end ends the daemon, in order and in time.
func (s *scenario) end(t *testing.T) {
	t.Helper()
	stopWithin(t, s.daemon, endLimit)
	lines := s.daemon.Stdout.Lines()
	if got := lines[len(lines)-1]; got != "Portsentry is shutting down" {
		t.Errorf("the last line is %q", got)
	}
}

// line waits for a line on standard output and returns its number.
func (s *scenario) line(t *testing.T, pattern string) (number int) {
	t.Helper()
	want := regexp.MustCompile(pattern)
	nettest.WaitFor(t, pattern, func() bool {
		number = slices.IndexFunc(s.daemon.Stdout.Lines(), want.MatchString)
		return number >= 0
	})
	return number
}

// inOrder waits for lines that follow each other.
func (s *scenario) inOrder(t *testing.T, patterns ...string) {
	t.Helper()
	before := -1
	for _, pattern := range patterns {
		number := s.line(t, pattern)
		if number <= before {
			t.Errorf("%q is not behind %q:\n%s", pattern, patterns, s.daemon.Stdout)
		}
		before = number
	}
}

// scans waits for as many Scan lines of the scanner over a protocol, each in the
// history too, and fails if there are more.
func (s *scenario) scans(t *testing.T, proto string, n int, kind string) {
	t.Helper()
	want := fmt.Sprintf("Scan from: [%v] (%v) protocol: [%s] port: [", s.scanner.IPv4, s.scanner.IPv4, proto)
	waitLines(t, s.daemon.Stdout, n, want)
	s.daemon.Stdout.WaitLine(t, "type: ["+kind+"]")
	nettest.WaitFor(t, "the history", func() bool { return strings.Count(s.read(t, "portsentry.history"), want) >= n })
	for _, line := range s.daemon.Stdout.Lines() {
		if strings.Contains(line, want) && !strings.HasPrefix(line, want) {
			t.Errorf("%q does not begin with %q", line, want)
		}
	}
	if got := countLines(s.daemon.Stdout, want); got != n {
		t.Errorf("%d lines %q, want %d", got, want, n)
	}
}

// blocked waits until the report of a blocked source is on standard output and
// in the history.
func (s *scenario) blocked(t *testing.T, proto string, source netip.Addr) {
	t.Helper()
	s.line(t, `^Scan from: \[`+regexp.QuoteMeta(source.String())+`\] .* noblock: \[false\] blocked: \[true\]$`)
	record := fmt.Sprintf("Scan from: [%v] (%v) protocol: [%s] port: [11]", source, source, proto)
	nettest.WaitFor(t, "the history", func() bool { return strings.Contains(s.read(t, "portsentry.history"), record) })
}

func (s *scenario) alreadyBlocked(t *testing.T, source netip.Addr) {
	t.Helper()
	s.line(t, fmt.Sprintf(`^attackalert: Host: %v/%v is already blocked Ignoring$`, source, source))
}

// size checks how many sources of either family the file of blocked ones has.
func (s *scenario) size(t *testing.T, ipv4, ipv6 int) {
	t.Helper()
	if got, want := len(s.read(t, "portsentry.blocked")), 6*ipv4+18*ipv6; got != want {
		t.Errorf("portsentry.blocked has %d bytes, want %d", got, want)
	}
}

// scan probes port 11 by nmap if how is one of its options, else by a socket.
func (s *scenario) scan(t *testing.T, how string) {
	t.Helper()
	if how[0] != '-' {
		s.probe(t, how, s.target.IPv4, 11)
		return
	}
	s.scanner.Run(t, "nmap", how, "-n", "-Pn", "--max-retries", "0", "-p", "11", s.target.IPv4.String())
}

// blocks checks that the first probe has its source blocked and that the second
// is told from it.
func (s *scenario) blocks(t *testing.T, how, kind string) {
	t.Helper()
	proto := "TCP"
	if how == "udp" || how == "-sU" {
		proto = "UDP"
	}
	s.scan(t, how)
	s.blocked(t, proto, s.scanner.IPv4)
	s.size(t, 1, 0)
	s.scan(t, how)
	s.alreadyBlocked(t, s.scanner.IPv4)
	s.scans(t, proto, 2, kind)
	s.size(t, 1, 0)
}

func blocksIPv6(t *testing.T, s *scenario) {
	s.probe(t, "tcp", s.target.IPv6, 11)
	s.blocked(t, "TCP", s.scanner.IPv6)
	s.probe(t, "tcp", s.target.IPv6, 11)
	s.alreadyBlocked(t, s.scanner.IPv6)
	s.size(t, 0, 1)
}

// logsOnly checks that two probes make two lines and nothing else.
func (s *scenario) logsOnly(t *testing.T, network, kind string) {
	t.Helper()
	for range 2 {
		s.probe(t, network, s.target.IPv4, 11)
	}
	s.scans(t, strings.ToUpper(network), 2, kind)
	s.size(t, 0, 0)
}

func (s *scenario) runsCommand(t *testing.T, network string) {
	t.Helper()
	s.probe(t, network, s.target.IPv4, 11)
	s.inOrder(t, `^attackalert: External command run for host: 192.0.2.1 using command: "./command.sh 192.0.2.1 11"$`, `^Scan from: `)
	s.holds(t, "command.got", "192.0.2.1 11\n")
}

// watchesRanges probes both ends of the ranges of rangesConfig and what is next
// to them, over both protocols.
func (s *scenario) watchesRanges(t *testing.T, kindTCP, kindUDP string) {
	t.Helper()
	for _, port := range []uint16{1, 2, 4, 5, 11, 12} {
		s.probe(t, "tcp", s.target.IPv4, port)
	}
	for _, port := range []uint16{1, 2, 6, 7, 11, 12} {
		s.probe(t, "udp", s.target.IPv4, port)
	}
	s.scans(t, "TCP", 3, kindTCP)
	s.scans(t, "UDP", 3, kindUDP)
	for _, want := range []string{"[TCP] port: [1]", "[TCP] port: [5]", "[TCP] port: [11]", "[UDP] port: [1]", "[UDP] port: [7]", "[UDP] port: [11]"} {
		if got := countLines(s.daemon.Stdout, want); got != 1 {
			t.Errorf("%d lines with %s, want 1", got, want)
		}
	}
}

// leavesOtherPorts probes a port that nobody asked for. A probe to one that is
// watched shows that the line of the first would have come.
func leavesOtherPorts(t *testing.T, s *scenario) {
	s.probe(t, "tcp", s.target.IPv4, 12)
	s.probe(t, "udp", s.target.IPv4, 12)
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.line(t, `^Scan from: .* port: \[11\]`)
	if got := countLines(s.daemon.Stdout, "Scan from:"); got != 1 {
		t.Errorf("%d reports, want 1:\n%s", got, s.daemon.Stdout)
	}
}

func ignoresIPv4(t *testing.T, s *scenario) { s.ignores(t, s.target.IPv4, s.scanner.IPv4) }
func ignoresIPv6(t *testing.T, s *scenario) { s.ignores(t, s.target.IPv6, s.scanner.IPv6) }

func (s *scenario) ignores(t *testing.T, target, source netip.Addr) {
	t.Helper()
	s.probe(t, "tcp", target, 11)
	s.inOrder(t,
		fmt.Sprintf(`^Host: %v found in ignore file \S+ aborting actions$`, source),
		`^Scan from: .* ignored: \[true\] triggered: \[unset\] noblock: \[unset\] blocked: \[unset\]$`,
	)
	s.size(t, 0, 0)
}

// askUDP sends a datagram and returns the answer.
func askUDP(t *testing.T, host *nettest.Host, to netip.AddrPort) string {
	t.Helper()
	var conn net.Conn
	var err error
	host.Do(t, func() { conn, err = net.Dial("udp", to.String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("who is there")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1024)
	n, err := conn.Read(answer)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer[:n])
}

// readFile returns what a file of this machine holds, and "none" if there is none.
func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
