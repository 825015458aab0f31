package main

import (
	"flag"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/internal/nettest"
)

var cutoffRuns = flag.Int("cutoff.runs", 3, "have nmap scan `N` times in TestNmapIsCutOff")

// openPorts are the services of the scanned host. None is among the two dozen
// ports that nmap asks first, all within half a millisecond: what answers there
// has answered before anybody can act.
var openPorts = []uint16{2049, 3000, 5432, 6379, 8443, 9000, 9090, 9200, 27017, 50051}

var nmapOpen = regexp.MustCompile(`(?m)^(\d+)/tcp +open `)

// Of ten services nmap learns none: soon after the first of its probes to a trap
// port it gets no answer any more. All scans are under way at the same time, as
// one takes half a minute.
func TestNmapIsCutOff(t *testing.T) {
	t.Parallel()
	var (
		learned []int
		finish  []func()
	)
	for range *cutoffRuns {
		f := newFortress(t, `for = "1h"`)
		f.config = strings.Replace(f.config, `tcp_ports = "11"`, `tcp_ports = "preset:modern"`, 1)
		for _, port := range openPorts {
			f.target.Listen(t, "tcp", port)
		}
		f.start(t)
		report := nmapAll(t, f.scanner, f.target)
		finish = append(finish, func() {
			learned = append(learned, len(nmapOpen.FindAllString(report(), -1)))
			if bans := f.bans(t); len(bans) != 1 || bans[0].Source.Addr() != f.scanner.IPv4 {
				t.Errorf("bans are %v, want the scanner's", bans)
			}
		})
	}
	for _, f := range finish {
		f()
	}
	slices.Sort(learned)
	t.Logf("open services that nmap learned of, of %d, in each scan: %v", len(openPorts), learned)
	if median := learned[len(learned)/2]; median > 0 {
		t.Errorf("nmap learned of %d open services in the median, want 0", median)
	}
}

// nmapAll begins a scan of all ports and returns what waits for its report.
func nmapAll(t *testing.T, scanner, target *nettest.Host) (report func() string) {
	t.Helper()
	cmd := scanner.Command(t.Context(), "nmap", "-sS", "-n", "-p-", "-T4", "--min-rate", "5000", target.IPv4.String())
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Errorf("nmap: %v", err)
		}
		return out.String()
	}
}

// Without the daemon nmap learns of all of them.
func TestNmapIsNotCutOffByItself(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	for _, port := range openPorts {
		target.Listen(t, "tcp", port)
	}
	if report := nmapAll(t, scanner, target)(); len(nmapOpen.FindAllString(report, -1)) != len(openPorts) {
		t.Errorf("want %v open in\n%s", openPorts, report)
	}
}
