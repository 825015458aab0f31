package firewall

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputtest"
)

// The tests' process has a network stack of its own. It is the host whose
// firewall the module keeps, for a module acts where its process is.
func TestMain(m *testing.M) {
	outputtest.Serve(newModule)
	nettest.Main(m)
}

// The addresses of this host on the wire to the other one.
const (
	ourIPv4 = "192.0.2.2"
	ourIPv6 = "2001:db8::2"
)

// other returns a host on a wire to this one. It has 192.0.2.1 and 192.0.2.9,
// and 2001:db8::1 and 2001:db8:0:1::9 by a route.
func other(t *testing.T) *nettest.Host {
	t.Helper()
	scanner, target := nettest.NewPair(t)
	const wire = "wire0"
	target.Run(t, "ip", "link", "set", target.Interface, "netns", strconv.Itoa(os.Getpid()), "name", wire)
	t.Cleanup(func() { run(t, "ip", "link", "delete", wire) })
	for _, command := range []string{
		"link set " + wire + " addrgenmode none up",
		"address add " + ourIPv4 + "/24 dev " + wire,
		"address add " + ourIPv6 + "/64 dev " + wire + " nodad",
		"route add 2001:db8:0:1::/64 dev " + wire,
	} {
		run(t, "ip", strings.Fields(command)...)
	}
	scanner.Run(t, "ip", "address", "add", "192.0.2.9/24", "dev", scanner.Interface)
	scanner.Run(t, "ip", "address", "add", "2001:db8:0:1::9/64", "dev", scanner.Interface, "nodad")
	nettest.WaitFor(t, "the wire is up", func() bool { return reaches(t, scanner, "192.0.2.9") && reaches(t, scanner, "2001:db8::1") })
	return scanner
}

// patience is how long a connection may take that nobody drops.
const patience = 300 * time.Millisecond

// reaches reports whether a host can connect to this one from a source address.
// The answer is a reset, for nobody listens.
func reaches(t *testing.T, from *nettest.Host, source string) bool {
	t.Helper()
	target := netip.MustParseAddr(ourIPv4)
	if strings.Contains(source, ":") {
		target = netip.MustParseAddr(ourIPv6)
	}
	return connects(t, from, source, netip.AddrPortFrom(target, 9))
}

func connects(t *testing.T, from *nettest.Host, source string, target netip.AddrPort) bool {
	t.Helper()
	var err error
	from.Do(t, func() {
		// A timeout would be watched by another thread, which is not on the host.
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Deadline: time.Now().Add(patience)}
		var conn net.Conn
		if conn, err = d.Dial("tcp", target.String()); err == nil {
			conn.Close()
		}
	})
	return err == nil || strings.Contains(err.Error(), "refused")
}

func pings(t *testing.T, from *nettest.Host, source, target string) bool {
	t.Helper()
	return from.Command(t.Context(), "ping", "-n", "-c", "1", "-W", "0.3", "-I", source, target).Run() == nil
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	// Also in cleanups, when the test's context is done.
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// sh runs a line of shell as an administrator would.
func sh(t testing.TB, line string) string {
	t.Helper()
	return run(t, "/bin/sh", "-ec", line)
}

// configured returns a module with settings in JSON. Whatever it made is gone when
// the test ends.
func configured(t testing.TB, settings string) *Module {
	t.Helper()
	m := new(Module)
	if err := m.Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(settings)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.settings.Keep = false
		flush(t, m)
	})
	return m
}

func flush(t testing.TB, m *Module) {
	t.Helper()
	if err := m.Flush(context.Background()); err != nil {
		t.Errorf("flush: %v", err)
	}
}

func bansUntil(until time.Time, sources ...string) []detector.Ban {
	bans := make([]detector.Ban, len(sources))
	for i, source := range sources {
		bans[i] = detector.Ban{Source: netip.MustParsePrefix(source), Until: until}
	}
	return bans
}

func set(t testing.TB, m *Module, bans []detector.Ban) {
	t.Helper()
	results, err := m.SetBans(t.Context(), bans)
	checkResults(t, "SetBans", results, err, len(bans))
}

func change(t testing.TB, m *Module, add, remove []detector.Ban) {
	t.Helper()
	results, err := m.ChangeBans(t.Context(), add, remove)
	checkResults(t, "ChangeBans", results, err, len(add))
}

func checkResults(t testing.TB, call string, results []outputapi.Result, err error, want int) {
	t.Helper()
	if err != nil || len(results) != want {
		t.Fatalf("%s returned %d results, %v; want %d and no error", call, len(results), err, want)
	}
	for i, r := range results {
		if r.Err != nil {
			t.Fatalf("%s: ban %d: %v", call, i, r.Err)
		}
	}
}

// hosts returns bans of n IPv4 hosts.
func hosts(n int, until time.Time) []detector.Ban {
	bans := make([]detector.Ban, n)
	for i := range bans {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xc6120000+uint32(i)) // 198.18.0.0 and on
		bans[i] = detector.Ban{Source: netip.PrefixFrom(netip.AddrFrom4(a), 32), Until: until}
	}
	return bans
}

// networks returns bans of n IPv6 prefixes of 64 bits.
func networks(n int, until time.Time) []detector.Ban {
	bans := make([]detector.Ban, n)
	for i := range bans {
		a := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		binary.BigEndian.PutUint32(a[4:], uint32(i))
		bans[i] = detector.Ban{Source: netip.PrefixFrom(netip.AddrFrom16(a), 64), Until: until}
	}
	return bans
}
