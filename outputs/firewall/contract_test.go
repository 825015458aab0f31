package firewall

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// A variant is one way to use the module, for tests of what all have in common.
type variant struct {
	settings string
	before   string // what the administrator did before
	after    string
	legacy   bool // iptables is iptables-legacy
	read     func(testing.TB) kernel
}

const (
	// ownSets and ownIPSets are what docs/firewall.md tells administrators to
	// write.
	ownSets = `nft -f - <<-'END'
		table inet filter {
			set banned4 { type ipv4_addr; flags timeout; }
			set banned4_nets { type ipv4_addr; flags interval, timeout; }
			set banned6 { type ipv6_addr; flags timeout; }
			set banned6_64 { type ipv6_addr; flags timeout; }
			set banned6_nets { type ipv6_addr; flags interval, timeout; }

			chain prerouting {
				type filter hook prerouting priority raw; policy accept;
				ip saddr @banned4 drop
				ip saddr @banned4_nets drop
				ip6 saddr @banned6 drop
				ip6 saddr & ffff:ffff:ffff:ffff:: @banned6_64 drop
				ip6 saddr @banned6_nets drop
			}
		}
	END`
	ownIPSets = `
		ipset create portsnare4 hash:net family inet timeout 0
		ipset create portsnare6 hash:net family inet6 timeout 0
		iptables -t raw -I PREROUTING -m set --match-set portsnare4 src -j DROP
		ip6tables -t raw -I PREROUTING -m set --match-set portsnare6 src -j DROP`
)

func nftTableReader(table string) func(testing.TB) kernel {
	return func(t testing.TB) kernel { return readNFT(t, table) }
}

var variants = map[string]variant{
	"nftables":               {settings: `{}`, read: nftTableReader("inet portsnare")},
	"nftables at input":      {settings: `{"backend": "nftables", "hook": "input", "table": "guard"}`, read: nftTableReader("inet guard")},
	"nftables, sets only":    {settings: `{"backend": "nftables", "sets_only": true, "table": "inet filter"}`, before: ownSets, after: "nft delete table inet filter", read: nftTableReader("inet filter")},
	"ipset":                  {settings: `{"backend": "ipset"}`, read: readIPSet},
	"ipset at input":         {settings: `{"backend": "ipset", "hook": "input"}`, read: readIPSet},
	"ipset, sets only":       {settings: `{"backend": "ipset", "sets_only": true}`, before: ownIPSets, after: "iptables -t raw -F; ip6tables -t raw -F; until ipset destroy; do sleep 0.1; done", read: readIPSet},
	"ipset, legacy iptables": {settings: `{"backend": "ipset"}`, legacy: true, read: readIPSet},
}

func (v variant) start(t *testing.T) *Module {
	t.Helper()
	if v.legacy {
		useLegacy(t)
	}
	if v.before != "" {
		sh(t, v.before)
		t.Cleanup(func() { sh(t, v.after) }) // after the module is gone
	}
	return configured(t, v.settings)
}

// useLegacy has the module find iptables-legacy as iptables, as where an
// administrator has chosen that.
func useLegacy(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore"} {
		if err := os.Symlink("/usr/sbin/xtables-legacy-multi", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	dirs := programDirs
	programDirs = append([]string{dir}, dirs...)
	t.Cleanup(func() { programDirs = dirs })
}

func TestBannedSourcesAreKeptOut(t *testing.T) {
	const (
		host, otherHost = "192.0.2.1", "192.0.2.9"
		ipv6, otherIPv6 = "2001:db8::1", "2001:db8:0:1::9"
	)
	tests := map[string]struct{ ban, out, in string }{
		"IPv4 host":             {"192.0.2.1/32", host, otherHost},
		"IPv4 host as IPv6":     {"::ffff:192.0.2.1/128", host, otherHost},
		"IPv4 prefix":           {"192.0.2.0/29", host, otherHost},
		"IPv6 host":             {"2001:db8::1/128", ipv6, otherIPv6},
		"IPv6 customary prefix": {"2001:db8:0:1:ffff::/64", otherIPv6, ipv6},
		"IPv6 other prefix":     {"2001:db8:0:1::/112", otherIPv6, ipv6},
	}
	outside := other(t)
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			set(t, m, nil)
			for name, test := range tests {
				t.Run(name, func(t *testing.T) {
					bans := bansUntil(time.Now().Add(time.Hour), test.ban)
					change(t, m, bans, nil)
					if reaches(t, outside, test.out) {
						t.Errorf("%s still connects after a ban of %s", test.out, test.ban)
					}
					if !reaches(t, outside, test.in) {
						t.Errorf("%s does not connect after a ban of %s", test.in, test.ban)
					}
					change(t, m, nil, bans)
					if !reaches(t, outside, test.out) {
						t.Errorf("%s does not connect after the end of a ban of %s", test.out, test.ban)
					}
				})
			}
		})
	}
}

func TestForwardedTrafficIsKeptOut(t *testing.T) {
	const behind = "198.51.100.2" // a container, say
	outside := other(t)
	inside, spare := nettest.NewPair(t)
	spare.Run(t, "ip", "link", "set", spare.Interface, "netns", strconv.Itoa(os.Getpid()), "name", "bridge0")
	t.Cleanup(func() { run(t, "ip", "link", "delete", "bridge0") })
	sh(t, `ip link set bridge0 up
		ip address add 198.51.100.1/24 dev bridge0
		echo 1 > /proc/sys/net/ipv4/ip_forward
		nft 'table ip nat { chain docker { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to 198.51.100.2:9; }; }'`)
	t.Cleanup(func() { sh(t, "nft delete table ip nat; echo 0 > /proc/sys/net/ipv4/ip_forward") })
	inside.Run(t, "ip", "address", "flush", "dev", inside.Interface)
	inside.Run(t, "ip", "address", "add", behind+"/24", "dev", inside.Interface)
	inside.Run(t, "ip", "route", "add", "default", "via", "198.51.100.1")
	outside.Run(t, "ip", "route", "add", "198.51.100.0/24", "via", ourIPv4)
	nettest.WaitFor(t, "packets are forwarded", func() bool { return pings(t, outside, "192.0.2.1", behind) })

	ways := map[string]func(source string) bool{
		"routed": func(source string) bool { return pings(t, outside, source, behind) },
		"published port": func(source string) bool {
			return connects(t, outside, source, netip.MustParseAddrPort(ourIPv4+":8080"))
		},
	}
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			set(t, m, bansUntil(time.Time{}, "192.0.2.1/32"))
			for way, works := range ways {
				if works("192.0.2.1") {
					t.Errorf("%s: a banned source comes through", way)
				}
				if !works("192.0.2.9") {
					t.Errorf("%s: a source that is not banned does not come through", way)
				}
			}
		})
	}
}

func TestOpenConnectionsStop(t *testing.T) {
	outside := other(t)
	service, err := net.Listen("tcp", ourIPv4+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			set(t, m, nil)
			far, near := dial(t, outside, service)
			if !pings(t, outside, "192.0.2.1", ourIPv4) {
				t.Fatal("a source that is not banned is not answered")
			}
			set(t, m, bansUntil(time.Time{}, "192.0.2.1/32"))
			if pings(t, outside, "192.0.2.1", ourIPv4) {
				t.Error("a banned source is answered")
			}
			if _, err := far.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if n, err := readWithin(near, patience); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes came through an open connection after the ban, %v", n, err)
			}
			set(t, m, nil)
			if n, err := readWithin(near, 20*time.Second); n != 1 || err != nil {
				t.Errorf("%d bytes came through after the end of the ban, %v", n, err)
			}
		})
	}
}

// dial returns the two ends of a connection from 192.0.2.1 to a service here.
func dial(t *testing.T, from *nettest.Host, service net.Listener) (far, near net.Conn) {
	t.Helper()
	var err error
	from.Do(t, func() {
		far, err = net.DialTCP("tcp", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, service.Addr().(*net.TCPAddr))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	if near, err = service.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	return far, near
}

func readWithin(conn net.Conn, patience time.Duration) (int, error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return conn.Read(make([]byte, 8))
}

func TestBansLapse(t *testing.T) {
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			const lifetime = time.Second
			began := time.Now()
			short := []string{"198.51.100.1/32", "203.0.113.0/28", "2001:db8::1/128", "2001:db8:1::/64", "2001:db8:2::/56"}
			set(t, m, append(bansUntil(began.Add(lifetime), short...), bansUntil(began.Add(time.Hour), "198.51.100.2/32")...))
			if got := v.read(t); len(got) != len(short)+1 {
				t.Fatalf("the kernel keeps out %v", got)
			}
			nettest.WaitFor(t, "the bans end", func() bool { return len(v.read(t)) == 1 })
			if took := time.Since(began); took < lifetime || took > lifetime+5*time.Second {
				t.Errorf("bans of %v ended after %v", lifetime, took)
			}
		})
	}
}

func TestTimesChange(t *testing.T) {
	sources := []string{"198.51.100.1/32", "203.0.113.0/28", "2001:db8::1/128", "2001:db8:1::/64", "2001:db8:2::/56"}
	now := time.Now()
	tests := map[string]struct{ from, to time.Time }{
		"longer":       {now.Add(time.Hour), now.Add(2 * time.Hour)},
		"shorter":      {now.Add(2 * time.Hour), now.Add(time.Hour)},
		"for ever":     {now.Add(time.Hour), time.Time{}},
		"not for ever": {time.Time{}, now.Add(time.Hour)},
		"the same":     {now.Add(time.Hour), now.Add(time.Hour)},
		"about to end": {now.Add(shortest + time.Millisecond), now.Add(time.Hour)},
		"it has ended": {now.Add(-time.Millisecond), now.Add(time.Hour)},
	}
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			for name, test := range tests {
				t.Run(name, func(t *testing.T) {
					set(t, m, bansUntil(test.from, sources...))
					change(t, m, bansUntil(test.to, sources...), nil)
					checkKernel(t, v.read(t), listOf(bansUntil(test.to, sources...)))
				})
			}
		})
	}
}

// listOf returns the bans by their source, as a model of what should be.
func listOf(bans []detector.Ban) map[netip.Prefix]time.Time {
	list := make(map[netip.Prefix]time.Time)
	for _, b := range bans {
		list[b.Source.Masked()] = b.Until
	}
	return list
}

// checkKernel fails unless the kernel keeps out what the bans say, at their edges
// and on both sides of those.
func checkKernel(t testing.TB, got kernel, bans map[netip.Prefix]time.Time) {
	t.Helper()
	now := time.Now()
	for source := range bans {
		for _, edge := range []netip.Addr{source.Addr(), lastOf(source)} {
			for _, a := range []netip.Addr{edge.Prev(), edge, edge.Next()} {
				if want, left := leftTo(a, bans, now), got.left(a); (left-want).Abs() > tolerance || (left == forever) != (want == forever) {
					t.Fatalf("%v is banned for %v, want %v\nbans %v\nkernel %v", a, left, want, bans, got)
				}
			}
		}
	}
	for s := range got {
		if leftTo(s.first, bans, now.Add(-2*tolerance)) == 0 {
			t.Fatalf("the kernel keeps out %v, whom nobody has banned\nbans %v", s, bans)
		}
	}
}

// leftTo returns how long an address is to stay banned.
func leftTo(a netip.Addr, bans map[netip.Prefix]time.Time, now time.Time) time.Duration {
	var longest time.Duration
	for source, until := range bans {
		if !source.Contains(a) {
			continue
		}
		if until.IsZero() {
			return forever
		}
		longest = max(longest, until.Sub(now))
	}
	return longest
}

// TestKernelFollows changes bans at random and compares what the kernel does with
// what was asked for.
func TestKernelFollows(t *testing.T) {
	const steps = 60
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			m := v.start(t)
			whole := &wholes{backend: m.backend}
			m.backend = whole
			bans := make(map[netip.Prefix]time.Time)
			sets := 1 // the first call of all states everything
			for range steps {
				add, remove := randomBans(random, 4), randomBans(random, 4)
				if random.IntN(8) == 0 {
					clear(bans)
					set(t, m, add)
					sets++
				} else {
					change(t, m, add, remove)
				}
				for _, b := range remove {
					delete(bans, b.Source.Masked())
				}
				for _, b := range add {
					bans[b.Source.Masked()] = b.Until
				}
				checkKernel(t, v.read(t), bans)
			}
			if got := whole.count.Load(); got > int64(sets) {
				t.Errorf("%d times all bans were put in the kernel anew, want %d: a change must do", got, sets)
			}
		})
	}
}

// wholes counts how often a backend is told all bans.
type wholes struct {
	backend
	count atomic.Int64
}

func (w *wholes) replace(ctx context.Context, bans map[netip.Prefix]time.Time) error {
	defer w.count.Add(1)
	return w.backend.replace(ctx, bans)
}

// randomBans returns up to most bans, of few different sources, which often lie in
// each other.
func randomBans(random *rand.Rand, most int) []detector.Ban {
	sources := make(map[netip.Prefix]bool)
	var bans []detector.Ban
	for range random.IntN(most + 1) {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(random.IntN(4) * 85)})
		bits := 22 + random.IntN(11)
		if random.IntN(2) == 0 {
			a = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 6: byte(random.IntN(2)), 7: byte(random.IntN(2)), 15: byte(random.IntN(2) * 255)})
			bits = []int{32, 48, 56, 63, 64, 65, 120, 127, 128}[random.IntN(9)]
		}
		until := []time.Time{{}, time.Now().Add(time.Hour), time.Now().Add(2 * time.Hour)}[random.IntN(3)]
		source := netip.PrefixFrom(a, bits)
		if !sources[source.Masked()] {
			sources[source.Masked()] = true
			bans = append(bans, detector.Ban{Source: source, Until: until})
		}
	}
	return bans
}

func TestManyBans(t *testing.T) {
	const n = 10_000
	until := time.Now().Add(time.Hour)
	bans := append(hosts(n, until), networks(n, until)...)
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			count := func(want int) {
				t.Helper()
				if got := len(v.read(t)); got != want {
					t.Fatalf("the kernel keeps out %d, want %d", got, want)
				}
			}
			set(t, m, bans)
			count(2 * n)
			set(t, m, bans) // again is no change
			count(2 * n)
			change(t, m, nil, bans[:n])
			count(n)
			change(t, m, bans, nil) // some are there
			count(2 * n)
			set(t, m, bans[:1])
			count(1)
		})
	}
}

func TestHeals(t *testing.T) {
	foreign := map[string][]string{
		"nftables": {
			"nft flush ruleset",
			"nft delete table inet portsnare",
			"nft flush table inet portsnare",
			"nft flush chain inet portsnare prerouting",
			"nft flush set inet portsnare banned4",
			"nft delete element inet portsnare banned6_64 { 2001:db8:1:: }",
			"nft delete element inet portsnare banned4_nets { 203.0.113.0/28 }",
			"nft add element inet portsnare banned4 { 198.51.100.99 }",
			"nft insert rule inet portsnare prerouting accept",
			"nft 'add table inet portsnare { flags dormant; }'",
			"nft 'chain inet portsnare prerouting { policy drop; }'",
			"nft 'table inet portsnare; delete table inet portsnare; table inet portsnare { set banned4 { type inet_service; }; }'",
		},
		"nftables, sets only": {
			"nft flush set inet filter banned4",
			"nft flush set inet filter banned6_nets",
			ownSets[:len("nft -f - <<-'END'")] + "\nflush ruleset" + ownSets[len("nft -f - <<-'END'"):], // as nftables.service loads a file
		},
		"ipset": {
			"iptables -t raw -F; ip6tables -t raw -F",
			"ipset flush portsnare4",
			"ipset del portsnare6 2001:db8:1::/64",
			"ipset add portsnare4 198.51.100.99",
			"iptables -t raw -F; sleep 0.2; ipset destroy portsnare4",
		},
		"ipset, legacy iptables": {
			"iptables-legacy -t raw -F",
		},
	}
	sources := []string{"198.51.100.1/32", "203.0.113.0/28", "2001:db8::1/128", "2001:db8:1::/64", "2001:db8:2::/56"}
	outside := other(t)
	for name, lines := range foreign {
		v := variants[name]
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			whole := &wholes{backend: m.backend}
			m.backend = whole
			until := time.Now().Add(time.Hour)
			bans := append(bansUntil(until, sources...), bansUntil(time.Time{}, "192.0.2.1/32")...)
			for _, line := range lines {
				set(t, m, bans)
				before := whole.count.Load()
				sh(t, line)
				began := time.Now()
				nettest.WaitFor(t, "the bans are back after "+line, func() bool {
					holds, err := m.backend.holds(t.Context(), listOf(bans))
					return err == nil && holds && whole.count.Load() > before
				})
				took := time.Since(began)
				t.Logf("%s: healed after %v", line, took)
				if took > 5*time.Second {
					t.Error("want at most 5 s")
				}
				checkKernel(t, v.read(t), listOf(bans))
				if reaches(t, outside, "192.0.2.1") || !reaches(t, outside, "192.0.2.9") {
					t.Errorf("%s: the rules are not what they were", line)
				}
			}
		})
	}
}

func TestOnlyOthersRaiseDoubts(t *testing.T) {
	doubts := func(t *testing.T, m *Module) bool {
		t.Helper()
		bans, err := m.doubted(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		return bans != nil
	}
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			bans := append(hosts(2*manyBans, time.Now().Add(time.Hour)), networks(1, time.Time{})...)
			set(t, m, bans[:1])
			nettest.WaitFor(t, "the start is over", func() bool {
				n, ok := m.backend.(*nft)
				return (!ok || n.monitor.works.Load()) && !doubts(t, m)
			})
			own := map[string]func(){
				"SetBans of many":    func() { set(t, m, bans) },
				"ChangeBans of one":  func() { change(t, m, bans[1:2], bans[1:2]) },
				"ChangeBans of many": func() { change(t, m, nil, bans[1:]) },
			}
			for name, act := range own {
				act()
				if doubts(t, m) {
					t.Errorf("%s raises doubts", name)
				}
			}
			sh(t, "nft 'add table inet theirs; delete table inet theirs'; ipset create theirs hash:ip; ipset destroy theirs")
			if doubts(t, m) {
				t.Error("what others do elsewhere raises doubts")
			}
		})
	}
}

func TestClockIsSet(t *testing.T) {
	// Nobody can set the clock of one process, so the bans are given the time that
	// they would have after it was set.
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			sources := []string{"198.51.100.1/32", "203.0.113.0/28", "2001:db8:1::/64"}
			set(t, m, bansUntil(time.Now().Add(2*time.Hour), sources...))
			m.mu.Lock()
			for source, until := range m.bans.until {
				m.bans.put(source, until.Add(-time.Hour))
			}
			m.mu.Unlock()
			if err := m.mend(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			checkKernel(t, v.read(t), listOf(bansUntil(time.Now().Add(time.Hour), sources...)))
		})
	}
}

func TestForeignRulesStay(t *testing.T) {
	sh(t, `nft 'table inet theirs { set s { type ipv4_addr; elements = { 192.0.2.77 }; }; chain c { ip saddr @s counter; }; }'
		iptables -t raw -A PREROUTING -s 192.0.2.78 -j ACCEPT
		ipset create theirs hash:ip
		ipset add theirs 192.0.2.79`)
	t.Cleanup(func() { sh(t, "nft flush ruleset; ipset destroy theirs") })
	all := func() string { return sh(t, "nft -s list ruleset; iptables -t raw -S; ipset save theirs") }
	before := all()
	for name, v := range variants {
		if v.before != "" {
			continue // those have to do with rules of their own
		}
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			set(t, m, bansUntil(time.Time{}, "198.51.100.1/32"))
			sh(t, "nft list set inet theirs s; iptables -t raw -C PREROUTING -s 192.0.2.78 -j ACCEPT; ipset test theirs 192.0.2.79")
		})
		if diff := cmp.Diff(before, all()); diff != "" {
			t.Errorf("%s leaves (-before +after):\n%s", name, diff)
		}
	}
}

func TestKeep(t *testing.T) {
	for _, keep := range []bool{false, true} {
		for name, v := range variants {
			t.Run(fmt.Sprintf("%s, keep %v", name, keep), func(t *testing.T) {
				m := v.start(t)
				m.settings.Keep = keep
				bans := bansUntil(time.Now().Add(time.Hour), "198.51.100.1/32", "2001:db8:1::/64")
				set(t, m, bans)
				flush(t, m)
				if keep {
					checkKernel(t, v.read(t), listOf(bans))
					configured(t, v.settings) // of the next run, before it knows the bans
					checkKernel(t, v.read(t), listOf(bans))
					return
				}
				if left := sh(t, "nft list ruleset 2>/dev/null | grep -c -E '198.51.100.1|2001:db8:1:' || true; ipset save | grep -c add || true"); left != "0\n0\n" {
					t.Errorf("after the end %s bans are left in nftables and ipset", strings.Fields(left))
				}
				if v.before == "" {
					if left := sh(t, "nft list tables inet; ipset save; iptables -t raw -S 2>/dev/null | grep -e -A || true"); left != "" {
						t.Errorf("after the end there is still:\n%s", left)
					}
				}
			})
		}
	}
}
