package main

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/internal/nettest"
)

// alertLines are PortSentry 1.2's lines for one probe that nobody is banned for.
func alertLines(kind, source, proto, port string) []string {
	return []string{
		fmt.Sprintf("attackalert: %s from host: %s/%s to %s port: %s", kind, source, source, proto, port),
		fmt.Sprintf("attackalert: Ignoring %s response per configuration file setting.", proto),
	}
}

// With PortSentry 1.2's lines, every scan and connection reads as that program
// reports it.
func TestScansInTheLinesOfPortSentry1(t *testing.T) {
	const lines = "[log]\nformat = \"portsentry1\"\n"
	for name, test := range map[string]struct {
		config, proto string
		scan          []string
		kind          string
	}{
		"SYN":         {liveConfig, "TCP", []string{"-sS"}, "TCP SYN/Normal scan"},
		"FIN":         {liveConfig, "TCP", []string{"-sF"}, "TCP FIN scan"},
		"NULL":        {liveConfig, "TCP", []string{"-sN"}, " TCP NULL scan"},
		"XMAS":        {liveConfig, "TCP", []string{"-sX"}, "TCP XMAS scan"},
		"NULL + ECN":  {liveConfig, "TCP", []string{"-sS", "--scanflags", "ECECWR"}, " TCP NULL scan"},
		"SYN + FIN":   {liveConfig, "TCP", []string{"-sS", "--scanflags", "SYNFIN"}, "Unknown Type: TCP Packet Flags: SYN: 1 FIN: 1 ACK: 0 PSH: 0 URG: 0 RST: 0"},
		"UDP":         {liveConfig, "UDP", []string{"-sU"}, "UDP scan"},
		"connect":     {trapConfigText, "TCP", []string{"-sT"}, "Connect"},
		"UDP connect": {trapConfigText, "UDP", []string{"-sU"}, "Connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scanner, target := nettest.NewPair(t)
			daemon := startDaemon(t, target, test.config+lines)
			scan := append([]string{"-n", "-Pn", "--max-retries", "0", "-p", trapPort}, test.scan...)
			scanner.Run(t, "nmap", append(scan, target.IPv4.String())...)
			scanner.Run(t, "nmap", append(scan, "-6", target.IPv6.String())...)
			nettest.WaitFor(t, "four lines", func() bool { return len(daemon.Stdout.Lines()) >= 4 })
			stopWithin(t, daemon, unhurried)
			want := slices.Concat(
				alertLines(test.kind, scanner.IPv4.String(), test.proto, trapPort),
				alertLines(test.kind, scanner.IPv6.String(), test.proto, trapPort),
			)
			if diff := cmp.Diff(want, daemon.Stdout.Lines()); diff != "" {
				t.Errorf("lines on standard output (-want +got)\n%s", diff)
			}
		})
	}
}

// IP options, which nobody but who evades detection sends, get a line of their
// own.
func TestIPOptionsInTheLinesOfPortSentry1(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	daemon := startDaemon(t, target, liveConfig+"[log]\nformat = \"portsentry1\"\n")
	scanner.Run(t, "nmap", "-sS", "-n", "-Pn", "--max-retries", "0", "--ip-options", "R", "-p", trapPort, target.IPv4.String())
	nettest.WaitFor(t, "three lines", func() bool { return len(daemon.Stdout.Lines()) >= 3 })
	stopWithin(t, daemon, unhurried)
	source := scanner.IPv4.String()
	want := slices.Insert(alertLines("TCP SYN/Normal scan", source, "TCP", trapPort), 1,
		fmt.Sprintf("attackalert: Packet from host: %s/%s to TCP port: %s has IP options set (detection avoidance technique).", source, source, trapPort))
	if diff := cmp.Diff(want, daemon.Stdout.Lines()); diff != "" {
		t.Errorf("lines on standard output (-want +got)\n%s", diff)
	}
}

// The readers of these lines find them in syslog, behind the name of PortSentry.
func TestSyslogInTheLinesOfPortSentry1(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	socket := filepath.Join(t.TempDir(), "log")
	peer, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	config := liveConfig + "[log]\nstdout = false\nsyslog = true\nsyslog_tag = \"portsentry\"\nformat = \"portsentry1\"\n"
	// The daemon gets a /dev of its own, so that /dev/log is ours.
	const ownSyslog = `mount -t tmpfs tmpfs /dev && ln -s "$0" /dev/log && exec env "$@"`
	daemon := target.Start(t, "unshare", append([]string{"--mount", "sh", "-c", ownSyslog, socket}, daemonCommand(t, config)...)...)
	daemon.Stderr.WaitLine(t, "portsnare is active")
	probe(t, scanner, target)

	head := regexp.MustCompile(fmt.Sprintf(`^<29>[A-Z][a-z]{2} [ 1-3][0-9] [0-9:]{8} portsentry\[%d\]: `, daemon.PID()))
	if err := peer.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for _, want := range alertLines("TCP SYN/Normal scan", scanner.IPv4.String(), "TCP", trapPort) {
		n, err := peer.Read(buf)
		if err != nil {
			t.Fatalf("no message %q: %v", want, err)
		}
		if got := string(buf[:n]); !head.MatchString(got) || head.ReplaceAllString(got, "") != want {
			t.Errorf("syslog has %q, want %q behind %s", got, want, head)
		}
	}
	stopWithin(t, daemon, unhurried)
	if got := daemon.Stdout.Lines(); len(got) != 0 {
		t.Errorf("standard output has %q, want nothing", got)
	}
}
