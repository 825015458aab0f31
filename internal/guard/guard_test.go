package guard

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// why asks g about a ban of prefix.
func why(g *Guard, prefix string) string {
	phrase, _ := g.Spared(netip.MustParsePrefix(prefix))
	return phrase
}

func prefixes(texts ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		ps[i] = netip.MustParsePrefix(text)
	}
	return ps
}

func TestFixedRules(t *testing.T) {
	g := newGuard(Config{Allow: prefixes("203.0.113.0/24", "::ffff:198.51.100.0/120")}, nil)
	for ban, want := range map[string]string{
		"0.0.0.0/32":               "unspecified",
		"0.1.2.3/32":               "unspecified",
		"::/128":                   "unspecified",
		"127.0.0.1/32":             "loopback",
		"127.255.255.254/32":       "loopback",
		"::ffff:127.0.0.1/128":     "loopback",
		"::1/128":                  "loopback",
		"169.254.169.254/32":       "link-local",
		"fe80::1/128":              "link-local",
		"febf::1/128":              "link-local",
		"224.0.0.1/32":             "multicast",
		"239.255.255.255/32":       "multicast",
		"ff02::1/128":              "multicast",
		"255.255.255.255/32":       "broadcast",
		"0.0.0.0/0":                "unspecified",
		"::/0":                     "unspecified",
		"::ffff:0.0.0.0/96":        "unspecified",
		"::ffff:0.0.0.0/95":        "all of IPv4",
		"::ffff:0.0.0.0/90":        "all of IPv4",
		"203.0.113.9/32":           "on the allow list",
		"198.51.100.9/32":          "on the allow list",
		"::ffff:198.51.100.9/128":  "on the allow list",
		"192.0.2.1/32":             "",
		"::ffff:192.0.2.1/128":     "",
		"192.0.2.0/24":             "",
		"223.255.255.255/32":       "",
		"240.0.0.1/32":             "",
		"1.0.0.0/32":               "",
		"2001:db8::1/128":          "",
		"2001:db8::/64":            "",
		"fec0::1/128":              "",
		"64:ff9b::192.0.2.1/128":   "",
		"::fffd:ffff:ffff/128":     "",
		"::1:0:0:0/80":             "",
		"202.0.0.0/7":              "on the allow list",
		"203.0.112.0/24":           "",
		"::2/128":                  "",
		"::ffff:203.0.112.255/128": "",
	} {
		got, spared := g.Spared(netip.MustParsePrefix(ban))
		if got != want || spared != (want != "") {
			t.Errorf("%s is spared: %v, as %q, want %q", ban, spared, got, want)
		}
	}
	for name, p := range map[string]netip.Prefix{
		"no prefix":     {},
		"too many bits": netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 33),
	} {
		if got, spared := g.Spared(p); got != "not an address" || !spared {
			t.Errorf("%s is spared: %v, as %q", name, spared, got)
		}
	}
	zoned := netip.PrefixFrom(netip.MustParseAddr("fe80::1%eth0"), 128)
	if got, _ := g.Spared(zoned); got != "link-local" {
		t.Errorf("an address with a zone is spared as %q", got)
	}
}

func TestConfigureReplacesTheAllowList(t *testing.T) {
	mine := prefixes("203.0.113.0/24")
	g := newGuard(Config{Allow: mine}, nil)
	mine[0] = netip.MustParsePrefix("192.0.2.0/24") // the caller's own again
	if got := why(g, "203.0.113.1/32"); got != whyAllowed {
		t.Errorf("the first is spared as %q", got)
	}
	g.Configure(Config{Allow: prefixes("198.51.100.0/24")})
	if got := why(g, "203.0.113.1/32"); got != "" {
		t.Errorf("the first is still spared, as %q", got)
	}
	if got := why(g, "198.51.100.1/32"); got != whyAllowed {
		t.Errorf("the second is spared as %q", got)
	}
}

func TestAllowedListsEverything(t *testing.T) {
	g := newGuard(Config{Allow: prefixes("203.0.113.0/24", "203.0.113.7/32")}, nil)
	g.put(fromHost, []Entry{{netip.MustParsePrefix("192.0.2.1/32"), whyGateway}})
	got := g.Allowed()
	if diff := cmp.Diff([]Entry(fixedSet), got[:len(fixedSet)], comparePrefixes); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	want := []Entry{
		{netip.MustParsePrefix("192.0.2.1/32"), "gateway"},
		{netip.MustParsePrefix("203.0.113.0/24"), "on the allow list"},
	}
	if diff := cmp.Diff(want, got[len(fixedSet):], comparePrefixes); diff != "" {
		t.Errorf("then (-want +got):\n%s", diff)
	}
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestWarningsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger, logged := logtest.NewNullLogger()
		g := newGuard(Config{}, logrus.NewEntry(logger))
		for range 150 { // seconds
			g.coped(fromHost, errors.New("no answer"))
			g.coped(fromSessions, nil)
			time.Sleep(time.Second)
		}
		if got := len(logged.AllEntries()); got != 3 {
			t.Errorf("%d warnings in 150 s, want 3", got)
		}
		for _, e := range logged.AllEntries() {
			if e.Message != sourceWarnings[fromHost] {
				t.Errorf("warned of %q", e.Message)
			}
		}
	})
}

// large returns a guard with a hundred thousand allowed prefixes, none of which
// holds 2001:db8::1 or 203.0.113.1.
func large() *Guard {
	allow := make([]netip.Prefix, 100_000)
	for i := range allow {
		allow[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	return newGuard(Config{Allow: allow}, nil)
}

func TestSparedDoesNotAllocate(t *testing.T) {
	g := large()
	for _, ban := range prefixes("203.0.113.1/32", "2001:db8::/64", "10.0.1.2/32", "::ffff:203.0.113.1/128") {
		if n := testing.AllocsPerRun(100, func() { g.Spared(ban) }); n != 0 {
			t.Errorf("%v: %v allocations", ban, n)
		}
	}
}

func BenchmarkSpared(b *testing.B) {
	g := large()
	for name, ban := range map[string]netip.Prefix{
		"IPv4 host":   netip.MustParsePrefix("203.0.113.1/32"),
		"IPv6 prefix": netip.MustParsePrefix("2001:db8::/64"),
		"spared":      netip.MustParsePrefix("10.0.1.2/32"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g.Spared(ban)
			}
		})
	}
}
