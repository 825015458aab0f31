package outputs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

// fakeLedger remembers sources; what it cannot write down it remembers, too.
type fakeLedger struct {
	held map[netip.Addr]bool
	err  error
}

func newLedger(held ...string) *fakeLedger {
	l := &fakeLedger{held: make(map[netip.Addr]bool)}
	for _, source := range held {
		l.held[netip.MustParseAddr(source)] = true
	}
	return l
}

func (l *fakeLedger) Holds(source netip.Addr) bool { return l.held[source] }

func (l *fakeLedger) Add(ev *detector.Event) error {
	l.held[ev.Probe.Source.Addr()] = true
	return l.err
}

// journal is a ban output that fails for some sources and writes down, in turn
// with the events that are delivered, what it is asked for.
type journal struct {
	fails    map[string]bool
	prefixes bool // write down prefixes instead of addresses
	lines    []string
}

func (j *journal) ChangeBans(_ context.Context, add, remove []detector.Ban) ([]Result, error) {
	var asked []string
	var results []Result
	for _, ban := range remove {
		j.lines = append(j.lines, "lift "+ban.Source.String())
	}
	if len(add) == 0 {
		return nil, nil
	}
	for _, ban := range add {
		source := ban.Source.Addr().String()
		if j.prefixes {
			source = ban.Source.String()
		}
		asked = append(asked, source)
		r := Result{Acts: []detector.Act{{Kind: detector.ActRoute, Text: "route " + source}}}
		if j.fails[source] {
			r.Err = errors.New("no route")
		}
		results = append(results, r)
	}
	j.lines = append(j.lines, "ban "+strings.Join(asked, " "))
	return results, nil
}

func (j *journal) deliver(events []detector.Event) {
	for i := range events {
		ev := &events[i]
		line := fmt.Sprintf("event %v blocked %v", ev.Probe.Source.Addr(), ev.Blocked)
		if ev.Held {
			line += " held"
		}
		for _, act := range ev.Acts {
			line += ", " + act.Text
		}
		if ev.Reason != "" {
			line += ", " + ev.Reason
		}
		j.lines = append(j.lines, line)
	}
}

// scan returns the decision about a scan by source, with or without a ban.
func scan(source string, ban bool) detector.Decision {
	addr := netip.MustParseAddr(source)
	d := detector.Decision{Report: true, Event: detector.Event{
		Probe:   detector.Probe{Source: netip.AddrPortFrom(addr, 40000)},
		Ignored: detector.False, Triggered: detector.True, NoBlock: detector.TriOf(!ban), Blocked: detector.False,
	}}
	if ban {
		d.Ban = &detector.Ban{Source: netip.PrefixFrom(addr, addr.BitLen())}
	}
	return d
}

func TestSettle(t *testing.T) {
	const a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	reportOnly := detector.Decision{Report: true, Event: detector.Event{
		Probe: detector.Probe{Source: netip.MustParseAddrPort(c + ":1")}, Ignored: detector.False, Triggered: detector.False,
	}}
	tests := map[string]struct {
		enforcement Enforcement
		fails       string
		batch       []detector.Decision
		want        []string
	}{
		"bans of a batch are told at once": {
			batch: []detector.Decision{scan(a, true), reportOnly, scan(b, true)},
			want: []string{
				"ban 192.0.2.1 192.0.2.2",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
				"event 192.0.2.3 blocked unset",
				"event 192.0.2.2 blocked true, route 192.0.2.2",
			},
		},
		"one by one, nothing waits for what comes after it": {
			enforcement: Enforcement{OneByOne: true},
			batch:       []detector.Decision{reportOnly, scan(a, true), reportOnly, scan(b, true), reportOnly},
			want: []string{
				"event 192.0.2.3 blocked unset",
				"ban 192.0.2.1",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
				"event 192.0.2.3 blocked unset",
				"ban 192.0.2.2",
				"event 192.0.2.2 blocked true, route 192.0.2.2",
				"event 192.0.2.3 blocked unset",
			},
		},
		"without a ledger each probe leads to its ban": {
			batch: []detector.Decision{scan(a, true), scan(a, true)},
			want: []string{
				"ban 192.0.2.1 192.0.2.1",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
			},
		},
		"with a ledger only the first": {
			enforcement: Enforcement{Ledger: newLedger(b)},
			batch:       []detector.Decision{scan(a, true), scan(b, true), scan(a, true), scan(c, false)},
			want: []string{
				"ban 192.0.2.1",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
				"event 192.0.2.2 blocked true held",
				"event 192.0.2.1 blocked true held",
				"event 192.0.2.3 blocked false",
			},
		},
		"with a ledger, one by one": {
			enforcement: Enforcement{Ledger: newLedger(), OneByOne: true},
			batch:       []detector.Decision{scan(a, true), scan(a, true)},
			want: []string{
				"ban 192.0.2.1",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
				"event 192.0.2.1 blocked true held",
			},
		},
		"a ban that failed is tried again": {
			enforcement: Enforcement{Ledger: newLedger(), OneByOne: true},
			fails:       a,
			batch:       []detector.Decision{scan(a, true), scan(a, true)},
			want: []string{
				"ban 192.0.2.1",
				"event 192.0.2.1 blocked false, route 192.0.2.1",
				"ban 192.0.2.1",
				"event 192.0.2.1 blocked false, route 192.0.2.1",
			},
		},
		"a ledger that cannot be written still remembers": {
			enforcement: Enforcement{Ledger: &fakeLedger{held: map[netip.Addr]bool{}, err: errors.New("disk full")}, OneByOne: true},
			batch:       []detector.Decision{scan(a, true), scan(a, true)},
			want: []string{
				"ban 192.0.2.1",
				"event 192.0.2.1 blocked true, route 192.0.2.1",
				"event 192.0.2.1 blocked true held",
			},
		},
		"a ledger of all remembers whom nobody bans": {
			enforcement: Enforcement{Ledger: newLedger(), LedgerOfAll: true},
			batch:       []detector.Decision{scan(a, false), scan(a, false), reportOnly, reportOnly},
			want: []string{
				"event 192.0.2.1 blocked false",
				"event 192.0.2.1 blocked false held",
				"event 192.0.2.3 blocked unset",
				"event 192.0.2.3 blocked unset",
			},
		},
		"who must never be banned is not": {
			enforcement: Enforcement{Ledger: newLedger(), Spared: func(source netip.Prefix) (string, bool) {
				return "a gateway", source == netip.MustParsePrefix(a+"/32")
			}},
			batch: []detector.Decision{scan(a, true), scan(b, true), scan(a, true)},
			want: []string{
				"ban 192.0.2.2",
				"event 192.0.2.1 blocked false, never banned: a gateway",
				"event 192.0.2.2 blocked true, route 192.0.2.2",
				"event 192.0.2.1 blocked false, never banned: a gateway",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			j := &journal{fails: map[string]bool{test.fails: true}}
			test.enforcement.Outputs = []NamedBans{{"journal", j}}
			e := newEnforcer(test.enforcement, quiet())
			e.settle(t.Context(), test.batch, j.deliver)
			if diff := cmp.Diff(test.want, j.lines); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if len(e.events)+len(e.bans)+len(e.asked)+len(e.adding) > 0 {
				t.Errorf("left over: %+v", e)
			}
		})
	}
}

// badCount answers for another number of bans than it was told.
type badCount struct{}

func (badCount) ChangeBans(context.Context, []detector.Ban, []detector.Ban) ([]Result, error) {
	return make([]Result, 3), nil
}

func TestSettleBelievesNoWrongCount(t *testing.T) {
	j := new(journal)
	e := newEnforcer(Enforcement{Outputs: []NamedBans{{"bad", new(badCount)}}}, quiet())
	e.settle(t.Context(), []detector.Decision{scan("192.0.2.1", true)}, j.deliver)
	if diff := cmp.Diff([]string{"event 192.0.2.1 blocked false"}, j.lines); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got, want := e.snapshot(), (EnforcementStats{Failed: 1}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func TestSettleWithBans(t *testing.T) {
	const a, b, neighbour = "2001:db8::1", "192.0.2.2", "2001:db8::2"
	tests := map[string]struct {
		policy detector.BanPolicy
		before func(*detector.Bans)
		dryRun bool
		fails  string
		batch  []detector.Decision
		want   []string
		stats  EnforcementStats
	}{
		"a source is banned once, with its neighbours": {
			batch: []detector.Decision{scan(a, true), scan(neighbour, true), scan(a, true)},
			want: []string{
				"ban 2001:db8::/64",
				"event 2001:db8::1 blocked true, route 2001:db8::/64",
				"event 2001:db8::2 blocked true held",
				"event 2001:db8::1 blocked true held",
			},
			stats: EnforcementStats{Banned: 1, Held: 2},
		},
		"who is banned is not banned again": {
			before: func(bans *detector.Bans) {
				ban, _ := bans.Want(detector.Ban{Source: netip.MustParsePrefix(b + "/32")}, time.Now())
				bans.Confirm(ban.Source, time.Now())
			},
			batch: []detector.Decision{scan(b, true)},
			want:  []string{"event 192.0.2.2 blocked true held"},
			stats: EnforcementStats{Held: 1},
		},
		"a ban that failed is none": {
			fails: "192.0.2.2/32",
			batch: []detector.Decision{scan(b, true)},
			want:  []string{"ban 192.0.2.2/32", "event 192.0.2.2 blocked false, route 192.0.2.2/32"},
			stats: EnforcementStats{Failed: 1},
		},
		"above the cap there is a report and no ban": {
			policy: detector.BanPolicy{MaxPerMinute: 1},
			batch:  []detector.Decision{scan(a, true), scan(b, true)},
			want: []string{
				"ban 2001:db8::/64",
				"event 2001:db8::1 blocked true, route 2001:db8::/64",
				"event 192.0.2.2 blocked false, not banned: too many new bans in a minute (at most 1)",
			},
			stats: EnforcementStats{Banned: 1, Refused: 1},
		},
		"a dry run bans nobody and says whom it would": {
			policy: detector.BanPolicy{For: detector.Forever},
			dryRun: true,
			batch:  []detector.Decision{scan(b, true)},
			want:   []string{"event 192.0.2.2 blocked false, dry run: 192.0.2.2/32 would be banned until it is lifted"},
			stats:  EnforcementStats{Banned: 1},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			j := &journal{fails: map[string]bool{test.fails: true}, prefixes: true}
			bans := detector.NewBans(test.policy)
			if test.before != nil {
				test.before(bans)
			}
			e := newEnforcer(Enforcement{Outputs: []NamedBans{{"journal", j}}, Bans: bans, DryRun: test.dryRun}, quiet())
			e.settle(t.Context(), test.batch, j.deliver)
			if diff := cmp.Diff(test.want, j.lines); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if got := e.snapshot(); got != test.stats {
				t.Errorf("counted %+v, want %+v", got, test.stats)
			}
		})
	}
}

// Bans begin and end by order of the operator and by themselves, in every output
// and in what is told of them.
func TestBansBeginAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{prefixes: true}
		told := outputFunc(func(events []detector.Event) {
			for i := range events {
				j.lines = append(j.lines, fmt.Sprintf("told %d %v", events[i].Action, events[i].Ban.Source))
			}
		})
		spared := func(source netip.Prefix) (string, bool) {
			return "gateway", source.Contains(netip.MustParseAddr("192.0.2.254"))
		}
		d := NewDispatcher(quiet(), Enforcement{
			Outputs: []NamedBans{{"journal", j}}, Bans: detector.NewBans(detector.BanPolicy{}), Spared: spared,
		}, nil, []Named{{"told", told}})
		stop := start(t, d)
		defer stop()

		ban := func(source string, lasts time.Duration) error {
			_, err := d.Ban(t.Context(), detector.Ban{Source: netip.MustParsePrefix(source), Until: time.Now().Add(lasts)})
			synctest.Wait()
			return err
		}
		if err := ban("192.0.2.1/32", time.Minute); err != nil {
			t.Error(err)
		}
		if err := ban("198.51.100.0/24", time.Hour); err != nil {
			t.Error(err)
		}
		if err := ban("192.0.2.0/24", time.Hour); !errors.As(err, new(*SparedError)) {
			t.Errorf("ban of a gateway's network: %v, want a SparedError", err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if _, err := d.Unban(t.Context(), netip.MustParsePrefix("198.51.100.0/24")); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		want := []string{
			"ban 192.0.2.1/32", fmt.Sprintf("told %d 192.0.2.1/32", detector.BanBegan),
			"ban 198.51.100.0/24", fmt.Sprintf("told %d 198.51.100.0/24", detector.BanBegan),
			"lift 192.0.2.1/32", fmt.Sprintf("told %d 192.0.2.1/32", detector.BanEnded),
			"lift 198.51.100.0/24", fmt.Sprintf("told %d 198.51.100.0/24", detector.BanEnded),
		}
		if diff := cmp.Diff(want, j.lines); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

// forgetful does what it is told, and says that it failed as long as it is broken.
type forgetful struct {
	mu     sync.Mutex
	broken bool
	held   map[netip.Prefix]bool
}

func (f *forgetful) set(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

// holds returns the sources that are kept out, as text.
func (f *forgetful) holds() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(slices.SortedFunc(maps.Keys(f.held), netip.Prefix.Compare))
}

func (f *forgetful) ChangeBans(_ context.Context, add, remove []detector.Ban) ([]Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ban := range add {
		f.held[ban.Source] = true
	}
	if f.broken {
		return nil, errors.New("no answer") // and lifts nothing
	}
	for _, ban := range remove {
		delete(f.held, ban.Source)
	}
	return nil, nil
}

func (f *forgetful) SetBans(_ context.Context, bans []detector.Ban) ([]Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return nil, errors.New("no answer")
	}
	clear(f.held)
	for _, ban := range bans {
		f.held[ban.Source] = true
	}
	return nil, nil
}

// An output that may have done something else than it was told is told everything as
// soon as it works: neither a ban nor the lifting of one hangs in the air.
func TestOutputsCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &forgetful{held: make(map[netip.Prefix]bool)}
		d := NewDispatcher(quiet(), Enforcement{Outputs: []NamedBans{{"f", f}}, Bans: detector.NewBans(detector.BanPolicy{})}, nil, nil)
		stop := start(t, d)
		defer stop()
		ban := func(source string) error {
			_, err := d.Ban(t.Context(), detector.Ban{Source: netip.MustParsePrefix(source)})
			return err
		}
		if err := ban("192.0.2.1/32"); err != nil {
			t.Fatal(err)
		}
		if err := ban("192.0.2.2/32"); err != nil {
			t.Fatal(err)
		}
		f.set(true)
		if err := ban("192.0.2.3/32"); err == nil {
			t.Error("a ban that failed is told as made")
		}
		if bans, err := d.Unban(t.Context(), netip.MustParsePrefix("192.0.2.1/32")); len(bans) != 1 || err == nil {
			t.Errorf("Unban = %v, %v; want the ban, and that it was not carried out", bans, err)
		}
		time.Sleep(time.Minute)
		if got, want := f.holds(), "[192.0.2.1/32 192.0.2.2/32 192.0.2.3/32]"; got != want {
			t.Errorf("the broken output holds %s, want %s", got, want)
		}
		f.set(false)
		time.Sleep(2 * expireInterval)
		synctest.Wait()
		if got, want := f.holds(), "[192.0.2.2/32]"; got != want {
			t.Errorf("the output holds %s, want %s", got, want)
		}
	})
}

// What had to leave a full queue is banned all the same, once for each source.
func TestFullQueueLosesNoBan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		d := NewDispatcher(quiet(), Enforcement{Outputs: []NamedBans{{"journal", j}}, Ledger: newLedger()}, nil, nil)
		d.Submit(scan("192.0.2.1", true))
		d.Submit(scan("192.0.2.1", true))
		d.Submit(scan("192.0.2.2", true))
		for range queueLimit {
			d.Submit(report)
		}
		start(t, d)()
		if diff := cmp.Diff([]string{"ban 192.0.2.1 192.0.2.2"}, j.lines); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if got := d.Stats().Dropped; got != 1 {
			t.Errorf("%d events are counted as dropped, want 1", got)
		}
	})
}
