package outputtest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// manyBans is how many bans there are in the test of many.
const manyBans = 10_000

func (s *suite) testBans(t *testing.T) {
	tests := map[string]func(*testing.T, *place, module){
		"none":                              s.testNoBans,
		"SetBans states the whole truth":    s.testWholeTruth,
		"the same ban twice is one":         s.testTwice,
		"what is not there is lifted":       s.testLiftNothing,
		"one call lifts and bans":           s.testBoth,
		"a ban gets a new time":             s.testNewTime,
		"all kinds of sources":              s.testKinds,
		"a ban that is refused is not made": s.testRefused,
		"its time is over":                  s.testOutOfTime,
		"many":                              s.testMany,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := s.newPlace(t)
			m := s.open(t, p)
			test(t, p, m)
			set(t, m)
			p.wantBanned(t)
			s.close(t, m)
		})
	}
	t.Run("a new start", s.testNewStart)
}

func (s *suite) testNoBans(t *testing.T, p *place, m module) {
	set(t, m)
	change(t, m, nil, nil)
	set(t, m)
	p.wantBanned(t)
}

func (s *suite) testWholeTruth(t *testing.T, p *place, m module) {
	set(t, m, bans("192.0.2.1/32", "192.0.2.2/32", "2001:db8::/64")...)
	p.wantBanned(t, "192.0.2.1/32", "192.0.2.2/32", "2001:db8::/64")
	set(t, m, bans("192.0.2.2/32", "198.51.100.3/32")...)
	p.wantBanned(t, "192.0.2.2/32", "198.51.100.3/32")
	set(t, m, bans("192.0.2.2/32", "198.51.100.3/32")...)
	p.wantBanned(t, "192.0.2.2/32", "198.51.100.3/32")
	change(t, m, bans("192.0.2.9/32"), bans("192.0.2.2/32"))
	set(t, m, bans("192.0.2.2/32")...)
	p.wantBanned(t, "192.0.2.2/32")
}

func (s *suite) testTwice(t *testing.T, p *place, m module) {
	set(t, m)
	for range 3 {
		change(t, m, bans("192.0.2.1/32", "2001:db8::1/128"), nil)
		p.wantBanned(t, "192.0.2.1/32", "2001:db8::1/128")
	}
	change(t, m, nil, bans("192.0.2.1/32"))
	p.wantBanned(t, "2001:db8::1/128")
	// In one call, too.
	change(t, m, bans("192.0.2.1/32", "192.0.2.1/32"), nil)
	p.wantBanned(t, "192.0.2.1/32", "2001:db8::1/128")
	change(t, m, nil, bans("192.0.2.1/32", "192.0.2.1/32"))
	p.wantBanned(t, "2001:db8::1/128")
}

func (s *suite) testLiftNothing(t *testing.T, p *place, m module) {
	set(t, m, bans("192.0.2.1/32")...)
	for range 2 {
		change(t, m, nil, bans("192.0.2.2/32", "2001:db8::/64"))
		p.wantBanned(t, "192.0.2.1/32")
	}
}

func (s *suite) testBoth(t *testing.T, p *place, m module) {
	set(t, m, bans("192.0.2.1/32", "192.0.2.2/32")...)
	change(t, m, bans("192.0.2.3/32"), bans("192.0.2.1/32"))
	p.wantBanned(t, "192.0.2.2/32", "192.0.2.3/32")
	// Lifting comes first.
	change(t, m, bans("192.0.2.2/32"), bans("192.0.2.2/32"))
	p.wantBanned(t, "192.0.2.2/32", "192.0.2.3/32")
	// Only the source of what is lifted counts.
	change(t, m, nil, []detector.Ban{{Source: netip.MustParsePrefix("192.0.2.2/32")}})
	p.wantBanned(t, "192.0.2.3/32")
}

func (s *suite) testNewTime(t *testing.T, p *place, m module) {
	set(t, m, bans("192.0.2.1/32")...)
	for _, until := range []time.Time{time.Now().Add(48 * time.Hour), {}, time.Now().Add(time.Hour)} {
		again := bans("192.0.2.1/32")
		again[0].Until = until
		change(t, m, again, nil)
		p.wantBanned(t, "192.0.2.1/32")
	}
	// By order of the operator, so without a probe.
	set(t, m, detector.Ban{Source: netip.MustParsePrefix("192.0.2.1/32"), Origin: "operator"})
	p.wantBanned(t, "192.0.2.1/32")
}

// kinds are the sources that a ban may have, and what they are.
var kinds = map[string]struct{ source, want string }{
	"IPv4 host":               {"192.0.2.7/32", "192.0.2.7/32"},
	"IPv6 host":               {"2001:db8::7/128", "2001:db8::7/128"},
	"IPv4-mapped host":        {"::ffff:192.0.2.7/128", "192.0.2.7/32"},
	"IPv4 network":            {"198.51.100.0/24", "198.51.100.0/24"},
	"IPv4 network, host bits": {"198.51.100.77/29", "198.51.100.72/29"},
	"IPv4-mapped network":     {"::ffff:198.51.100.0/120", "198.51.100.0/24"},
	"IPv6 network":            {"2001:db8:0:1::/64", "2001:db8:0:1::/64"},
	"IPv6 network, host bits": {"2001:db8:0:1::1/56", "2001:db8::/56"},
}

func (s *suite) testKinds(t *testing.T, p *place, m module) {
	set(t, m)
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			b := bans(kind.source)
			change(t, m, b, nil)
			p.wantBanned(t, kind.want)
			change(t, m, b, nil)
			p.wantBanned(t, kind.want)
			change(t, m, nil, b)
			p.wantBanned(t)
			set(t, m, b...)
			p.wantBanned(t, kind.want)
			set(t, m)
			p.wantBanned(t)
		})
	}
}

// Nobody means to ban everybody. Whoever has such a result has no ban, and the
// others have theirs.
func (s *suite) testRefused(t *testing.T, p *place, m module) {
	mixed := bans("192.0.2.1/32", "0.0.0.0/0", "2001:db8::1/128")
	calls := map[string]func() ([]outputapi.Result, error){
		"ChangeBans": func() ([]outputapi.Result, error) { return m.ChangeBans(t.Context(), mixed, nil) },
		"SetBans":    func() ([]outputapi.Result, error) { return m.SetBans(t.Context(), mixed) },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			set(t, m)
			results, err := call()
			if err != nil || len(results) != len(mixed) {
				t.Fatalf("%s of %d bans = %d results, %v", name, len(mixed), len(results), err)
			}
			for i, r := range results {
				if (r.Err == nil) == (mixed[i].Source.Bits() == 0) {
					t.Errorf("the result for %v is %v", mixed[i].Source, r.Err)
				}
			}
			p.wantBanned(t, "192.0.2.1/32", "2001:db8::1/128")
		})
	}
}

func (s *suite) testOutOfTime(t *testing.T, p *place, m module) {
	set(t, m, bans("192.0.2.1/32")...)
	inTime(t, "ChangeBans", func() { _, _ = m.ChangeBans(ended(t), bans("192.0.2.2/32"), bans("192.0.2.1/32")) })
	inTime(t, "SetBans", func() { _, _ = m.SetBans(ended(t), bans("192.0.2.3/32")) })
	set(t, m, bans("192.0.2.4/32")...)
	p.wantBanned(t, "192.0.2.4/32")
}

func (s *suite) testMany(t *testing.T, p *place, m module) {
	n := s.Bans
	if n == 0 {
		n = manyBans
	}
	var sources []string
	for i := range n {
		if source := fmt.Sprintf("198.18.%d.%d/32", i/2/256, i/2%256); i%2 == 0 {
			sources = append(sources, source)
		} else {
			sources = append(sources, fmt.Sprintf("2001:db8:%x::/64", i))
		}
	}
	half := n / 2
	set(t, m, bans(sources[:half]...)...)
	change(t, m, bans(sources[half:]...), bans(sources[0], sources[1]))
	p.wantBanned(t, sources[2:]...)
	set(t, m, bans(sources...)...)
	p.wantBanned(t, sources...)
	change(t, m, nil, bans(sources[1:]...))
	p.wantBanned(t, sources[0])
}

// A module that is started again, after a good end or none, holds what it is
// told, whatever an earlier one left.
func (s *suite) testNewStart(t *testing.T) {
	p := s.newPlace(t)
	first := s.open(t, p)
	set(t, first, bans("192.0.2.1/32", "192.0.2.2/32", "2001:db8::/64")...)
	change(t, first, bans("192.0.2.3/32"), bans("192.0.2.1/32"))
	s.close(t, first)

	second := s.open(t, p)
	set(t, second, bans("192.0.2.2/32", "192.0.2.4/32")...)
	p.wantBanned(t, "192.0.2.2/32", "192.0.2.4/32")
	change(t, second, nil, bans("192.0.2.2/32"))
	p.wantBanned(t, "192.0.2.4/32")
	s.close(t, second)

	third := s.open(t, p)
	set(t, third)
	p.wantBanned(t)
	s.close(t, third)
}

// bans returns a ban of each source, as a probe leads to.
func bans(sources ...string) []detector.Ban {
	bans := make([]detector.Ban, len(sources))
	now := time.Now().Round(0)
	for i, source := range sources {
		prefix := netip.MustParsePrefix(source)
		bans[i] = detector.Ban{
			Source: prefix, Until: now.Add(time.Hour), Evidence: detector.Proven,
			Reason: "it probed", Origin: "portsnare",
			Probe: detector.Probe{
				At:     now,
				Source: netip.AddrPortFrom(prefix.Addr().Unmap(), 40000),
				Target: netip.MustParseAddrPort("192.0.2.200:23"),
				Proto:  detector.TCP, Technique: detector.TechniqueSYN, Proof: detector.ProofHandshake,
			},
		}
	}
	return bans
}

func set(t *testing.T, m module, bans ...detector.Ban) {
	t.Helper()
	results, err := m.SetBans(t.Context(), bans)
	checkResults(t, "SetBans", len(bans), results, err)
}

func change(t *testing.T, m module, add, remove []detector.Ban) {
	t.Helper()
	results, err := m.ChangeBans(t.Context(), add, remove)
	checkResults(t, "ChangeBans", len(add), results, err)
}

// checkResults fails unless all of n bans are in force.
func checkResults(t *testing.T, call string, n int, results []outputapi.Result, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", call, err)
	}
	if len(results) != 0 && len(results) != n {
		t.Fatalf("%s of %d bans returned %d results", call, n, len(results))
	}
	for i, r := range results {
		if r.Err != nil {
			t.Fatalf("%s: ban %d of %d: %v", call, i+1, n, r.Err)
		}
	}
}

// wantBanned fails unless just these sources are kept out.
func (p *place) wantBanned(t *testing.T, want ...string) {
	t.Helper()
	if p.Banned == nil {
		return
	}
	wanted := make([]netip.Prefix, len(want))
	for i, source := range want {
		wanted[i] = netip.MustParsePrefix(source)
	}
	got := slices.Clone(p.Banned(t))
	slices.SortFunc(wanted, netip.Prefix.Compare)
	slices.SortFunc(got, netip.Prefix.Compare)
	if diff := cmp.Diff(wanted, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("who is kept out (-want +got):\n%s", diff)
	}
}

// ended returns a context that is over.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
