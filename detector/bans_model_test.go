package detector

import (
	stdcmp "cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestBansModel takes 100,000 random steps with Bans and with a model that
// searches a list for everything, and compares the two after each.
func TestBansModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := newBanWalk(seed)
			for step := range 25_000 {
				did, fault := w.step()
				if fault == "" {
					fault = w.compare()
				}
				if fault != "" {
					t.Fatalf("step %d, %s: %s", step, did, fault)
				}
			}
			w.reached.check(t)
		})
	}
}

// walkPolicy has bounds that a walk reaches again and again.
var walkPolicy = BanPolicy{
	For: time.Minute, Max: 20 * time.Minute, Memory: 30 * time.Minute, Grace: 5 * time.Minute,
	Prefix6: 64, MaxPerMinute: 8, MaxBans: 12,
}

// A banWalk is a random walk.
type banWalk struct {
	rand    *rand.Rand
	now     time.Time
	bans    *Bans
	model   *banModel
	kept    map[netip.Prefix]Standing // what somebody who saves Changes has by now
	reached reached
}

// reached counts what a walk has come by, so that it cannot miss half of it.
type reached map[string]int

func (r reached) check(t *testing.T) {
	t.Helper()
	for _, what := range []string{
		"banned", "doubled", "ended", "lifted", "forgotten offences",
		ErrHeld.Error(), ErrWanted.Error(), ErrGrace.Error(), ErrTooManyNew.Error(), ErrTooManyBans.Error(), ErrEnded.Error(),
	} {
		if r[what] < 10 {
			t.Errorf("the walk came by %q %d times only: it proves little", what, r[what])
		}
	}
}

func newBanWalk(seed uint64) *banWalk {
	return &banWalk{
		rand:    rand.New(rand.NewPCG(seed, 4)),
		now:     time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		bans:    NewBans(walkPolicy),
		model:   &banModel{policy: walkPolicy},
		kept:    make(map[netip.Prefix]Standing),
		reached: make(reached),
	}
}

// step takes one step and returns what it was and what differed.
func (w *banWalk) step() (did, fault string) {
	w.now = w.now.Add(1 + time.Duration(w.rand.Int64N(int64(4*time.Second))))
	switch n := w.rand.IntN(100); {
	case n < 40:
		return "want", w.want()
	case n < 52:
		return "impose", w.impose()
	case n < 60:
		return "expire", w.expire()
	case n < 63:
		return "lift", w.lift(w.bans.Lift, w.model.lift)
	case n < 66:
		return "pardon", w.lift(w.bans.Pardon, w.model.pardon)
	case n < 88:
		return "settle", w.settle()
	case n < 89:
		w.now = w.now.Add(time.Duration(w.rand.Int64N(int64(time.Hour))))
		return "set the clock ahead", ""
	case n < 90:
		w.now = w.now.Add(-time.Duration(w.rand.Int64N(int64(time.Hour))))
		return "set the clock back", ""
	case n < 91:
		return "restart", w.restart()
	default:
		return "save", w.save()
	}
}

func (w *banWalk) addr() netip.Addr {
	n := byte(w.rand.IntN(12))
	switch w.rand.IntN(3) {
	case 0:
		return netip.AddrFrom4([4]byte{203, 0, 113, n})
	case 1:
		return netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: 203, 14: 113, 15: n})
	default:
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 7: n, 15: byte(w.rand.IntN(3))})
	}
}

func (w *banWalk) prefix() netip.Prefix {
	addr := w.addr()
	wider := []int{0, 0, 0, 0, 1, 2, 64, 66, 80}[w.rand.IntN(9)]
	if addr.Is4() || addr.Is4In6() {
		wider %= 16
	}
	return netip.PrefixFrom(addr, addr.BitLen()-wider)
}

func (w *banWalk) want() string {
	ban := Ban{Source: host(w.addr()), Reason: fmt.Sprint(w.rand.Int())}
	got, gotErr := w.bans.Want(ban, w.now)
	want, wantErr := w.model.want(ban, w.now)
	w.note(gotErr)
	if gotErr == nil && got.Until.Sub(w.now) > walkPolicy.For {
		w.reached["doubled"]++
	}
	return differs(got, want, gotErr, wantErr)
}

func (w *banWalk) impose() string {
	ban := Ban{Source: w.prefix(), Reason: fmt.Sprint(w.rand.Int())}
	if w.rand.IntN(20) > 0 {
		ban.Until = w.now.Add(time.Duration(w.rand.Int64N(int64(30*time.Minute))) - time.Minute)
	}
	got, gotErr := w.bans.Impose(ban, w.now)
	want, wantErr := w.model.impose(ban, w.now)
	w.note(gotErr)
	return differs(got, want, gotErr, wantErr)
}

func (w *banWalk) note(err error) {
	for _, known := range []error{ErrHeld, ErrWanted, ErrGrace, ErrTooManyNew, ErrTooManyBans, ErrEnded} {
		if errors.Is(err, known) {
			w.reached[known.Error()]++
		}
	}
}

// settle confirms or fails a ban that is under way, or one that is not.
func (w *banWalk) settle() string {
	source, err := walkPolicy.source(host(w.addr()))
	if err != nil {
		return err.Error()
	}
	if s := w.model.anyWanted(w.rand); s != nil {
		source = s.prefix
	}
	if w.rand.IntN(4) == 0 {
		w.bans.Fail(source)
		w.model.fail(source)
		return ""
	}
	got, want := w.bans.Confirm(source, w.now), w.model.confirm(source, w.now)
	if got {
		w.reached["banned"]++
	}
	return differs(got, want, nil, nil)
}

func (w *banWalk) expire() string {
	got, want := w.bans.Expire(w.now), w.model.expire(w.now)
	w.reached["ended"] += len(got)
	return differs(got, want, nil, nil)
}

func (w *banWalk) lift(lift, model func(netip.Prefix, time.Time) []Ban) string {
	prefix := w.prefix()
	got, want := lift(prefix, w.now), model(prefix, w.now)
	w.reached["lifted"] += len(got)
	return differs(got, want, nil, nil)
}

// save takes the changes over, as somebody who saves them does, and compares what
// has been saved with the whole.
func (w *banWalk) save() string {
	changes := w.bans.Changes(w.now)
	if changes.Whole {
		clear(w.kept)
	}
	for _, s := range changes.Sources {
		if s.Known() {
			w.kept[s.Source] = s
		} else {
			delete(w.kept, s.Source)
		}
	}
	if w.rand.IntN(20) > 0 {
		return ""
	}
	saved := slices.SortedFunc(maps.Values(w.kept), func(a, b Standing) int { return a.Source.Compare(b.Source) })
	whole := w.bans.State(w.now).Sources
	// Offences fade without being a change.
	fading := cmpopts.IgnoreFields(Standing{}, "Offences", "Since")
	known := func(s Standing) bool { return s.Ban != nil || !s.Grace.IsZero() }
	return cmp.Diff(only(whole, known), only(saved, known), fading, cmpopts.EquateComparable(netip.Prefix{}, Ban{}))
}

// restart goes on with new Bans, at times with a clock that is wrong.
func (w *banWalk) restart() string {
	w.reached["forgotten offences"] += int(w.bans.Stats().OffencesForgotten)
	state := w.bans.State(w.now)
	before := w.now
	switch w.rand.IntN(4) {
	case 0:
		w.now = time.Date(1970, 1, 1, 0, 0, 0, w.rand.Int(), time.UTC)
	case 1:
		w.now = w.now.Add(40 * 24 * time.Hour)
	default:
		w.now = w.now.Add(time.Duration(w.rand.Int64N(int64(10 * time.Minute))))
	}
	w.bans = NewBans(walkPolicy)
	left := w.bans.Restore(state, w.now)
	w.model.restart(before, w.now)
	clear(w.kept)
	for _, s := range w.bans.State(w.now).Sources {
		w.kept[s.Source] = s
	}
	return differs(left, 0, nil, nil)
}

// compare compares everything that can be asked, and looks for what must not be.
func (w *banWalk) compare() string {
	all := w.bans.All(w.now)
	for _, ban := range all {
		if !ban.Until.IsZero() && !w.now.Before(ban.Until) {
			return fmt.Sprintf("All has %v, which ended %v", ban.Source, ban.Until)
		}
	}
	if fault := differs(all, w.model.all(w.now), nil, nil); fault != "" {
		return "All: " + fault
	}
	addr := w.addr()
	got, gotOK := w.bans.Holds(addr, w.now)
	want, wantOK := w.model.holds(addr, w.now)
	if fault := differs(got, want, nil, nil); fault != "" || gotOK != wantOK {
		return fmt.Sprintf("Holds(%v): %v, want %v: %s", addr, gotOK, wantOK, fault)
	}
	stats := w.bans.Stats()
	if max(stats.Bans, stats.Remembered, stats.Graces) > walkPolicy.MaxBans || len(w.bans.sources.all) > 3*walkPolicy.MaxBans {
		return fmt.Sprintf("%+v and %d sources: beyond the bound", stats, len(w.bans.sources.all))
	}
	if got, want := [3]int{stats.Bans, stats.Remembered, stats.Graces}, w.model.gauges(); got != want {
		return fmt.Sprintf("bans, remembered, graces are %v, want %v", got, want)
	}
	return ""
}

func differs[T any](got, want T, gotErr, wantErr error) string {
	if !errors.Is(gotErr, wantErr) {
		return fmt.Sprintf("error is %v, want %v", gotErr, wantErr)
	}
	if reflect.DeepEqual(got, want) { // much faster
		return ""
	}
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}), cmpopts.EquateEmpty())
}

func only(list []Standing, keep func(Standing) bool) []Standing {
	return slices.DeleteFunc(slices.Clone(list), func(s Standing) bool { return !keep(s) })
}

// A banModel does what Bans promises, in the simplest way.
type banModel struct {
	policy  BanPolicy
	sources []*modelSource
	began   time.Time // of the minute
	taken   int       // in it
}

type modelSource struct {
	prefix      netip.Prefix
	ban, wanted *Ban
	wantedFor   int
	offences    int
	since       time.Time
	grace       time.Time
}

func (s *modelSource) held(now time.Time) bool {
	return s.ban != nil && (s.ban.Until.IsZero() || s.ban.Until.After(now))
}

func (s *modelSource) fresh(now time.Time) int {
	n := s.offences
	for t := s.since.Add(walkPolicy.Memory); n > 0 && !t.After(now); t = t.Add(walkPolicy.Memory) {
		n--
	}
	return n
}

func (s *modelSource) forgotten() time.Time {
	return s.since.Add(time.Duration(s.offences) * walkPolicy.Memory)
}

func later(a, b time.Time) bool { return !b.IsZero() && (a.IsZero() || a.After(b)) }

func covers(wide, narrow netip.Prefix) bool {
	return wide.Bits() <= narrow.Bits() && wide.Contains(narrow.Addr())
}

// around returns the sources that cover prefix, the widest first.
func (m *banModel) around(prefix netip.Prefix) []*modelSource {
	found := slices.DeleteFunc(slices.Clone(m.sources), func(s *modelSource) bool { return !covers(s.prefix, prefix) })
	slices.SortFunc(found, func(a, b *modelSource) int { return a.prefix.Bits() - b.prefix.Bits() })
	return found
}

func (m *banModel) get(prefix netip.Prefix) *modelSource {
	for _, s := range m.sources {
		if s.prefix == prefix {
			return s
		}
	}
	m.sources = append(m.sources, &modelSource{prefix: prefix})
	return m.sources[len(m.sources)-1]
}

func (m *banModel) gauges() (n [3]int) {
	for _, s := range m.sources {
		if s.ban != nil || s.wanted != nil {
			n[0]++
		}
		if s.offences > 0 {
			n[1]++
		}
		if !s.grace.IsZero() {
			n[2]++
		}
	}
	return n
}

func (m *banModel) want(ban Ban, now time.Time) (Ban, error) {
	source, _ := m.policy.source(ban.Source)
	for _, s := range m.around(source) {
		switch {
		case s.held(now):
			return *s.ban, ErrHeld
		case s.wanted != nil:
			return *s.wanted, ErrWanted
		case now.Before(s.grace):
			return Ban{}, ErrGrace
		}
	}
	s := m.get(source)
	if m.gauges()[0] >= m.policy.MaxBans && s.ban == nil {
		return Ban{}, ErrTooManyBans
	}
	if d := now.Sub(m.began); d < 0 || d >= time.Minute {
		m.began, m.taken = now, 0
	}
	if m.taken == m.policy.MaxPerMinute {
		return Ban{}, ErrTooManyNew
	}
	m.taken++
	ban.Source = source
	s.wantedFor = s.fresh(now) + 1
	length := m.policy.For
	for range s.wantedFor - 1 {
		length = min(2*length, m.policy.Max)
	}
	ban.Until = now.Add(length)
	s.wanted = &ban
	return ban, nil
}

func (m *banModel) impose(ban Ban, now time.Time) (Ban, error) {
	ban.Source = canonical(ban.Source)
	if !ban.Until.IsZero() && !ban.Until.After(now) {
		return Ban{}, ErrEnded
	}
	for _, s := range m.around(ban.Source) {
		switch {
		case s.ban != nil && !later(ban.Until, s.ban.Until):
			return *s.ban, ErrHeld
		case s.wanted != nil && (!later(ban.Until, s.wanted.Until) || s.prefix == ban.Source):
			return *s.wanted, ErrWanted
		}
	}
	s := m.get(ban.Source)
	if m.gauges()[0] >= m.policy.MaxBans && s.ban == nil {
		return Ban{}, ErrTooManyBans
	}
	s.wanted, s.wantedFor = &ban, 0
	return ban, nil
}

func (m *banModel) anyWanted(r *rand.Rand) *modelSource {
	wanted := slices.DeleteFunc(slices.Clone(m.sources), func(s *modelSource) bool { return s.wanted == nil })
	if len(wanted) == 0 {
		return nil
	}
	return wanted[r.IntN(len(wanted))]
}

func (m *banModel) confirm(source netip.Prefix, now time.Time) bool {
	s := m.get(source)
	if s.wanted == nil {
		return false
	}
	s.ban, s.wanted = s.wanted, nil
	if s.wantedFor > 0 {
		s.offences, s.since = s.wantedFor, s.ban.Until
		if s.since.Before(now) {
			s.since = now
		}
	}
	m.forget()
	return true
}

func (m *banModel) fail(source netip.Prefix) { m.get(source).wanted = nil }

// forget keeps the offences and graces that last longest.
func (m *banModel) forget() {
	for m.gauges()[1] > m.policy.MaxBans {
		weakest := slices.MinFunc(
			slices.DeleteFunc(slices.Clone(m.sources), func(s *modelSource) bool { return s.offences == 0 }),
			func(a, b *modelSource) int {
				return stdcmp.Or(a.forgotten().Compare(b.forgotten()), a.prefix.Compare(b.prefix))
			})
		weakest.offences = 0
	}
	for m.gauges()[2] > m.policy.MaxBans {
		first := slices.MinFunc(
			slices.DeleteFunc(slices.Clone(m.sources), func(s *modelSource) bool { return s.grace.IsZero() }),
			func(a, b *modelSource) int {
				return stdcmp.Or(a.grace.Compare(b.grace), a.prefix.Compare(b.prefix))
			})
		first.grace = time.Time{}
	}
}

// end takes a ban away.
func (s *modelSource) end() Ban {
	ban := s.ban
	if ban == nil {
		ban = s.wanted
	}
	s.ban, s.wanted = nil, nil
	return *ban
}

func (m *banModel) expire(now time.Time) []Ban {
	var ended []*modelSource
	ends := make(map[*modelSource]time.Time)
	for _, s := range m.sources {
		for _, ban := range []*Ban{s.ban, s.wanted} {
			if ban != nil && (ends[s].IsZero() || later(ban.Until, ends[s])) {
				ends[s] = ban.Until
			}
			if ban != nil && ban.Until.IsZero() {
				ends[s] = time.Unix(1<<40, 0)
			}
		}
		if (s.ban != nil || s.wanted != nil) && !ends[s].After(now) {
			ended = append(ended, s)
		}
		if s.offences > 0 && !s.forgotten().After(now) {
			s.offences = 0
		}
		if !s.grace.After(now) {
			s.grace = time.Time{}
		}
	}
	slices.SortFunc(ended, func(a, b *modelSource) int {
		return stdcmp.Or(ends[a].Compare(ends[b]), a.prefix.Compare(b.prefix))
	})
	var bans []Ban
	for _, s := range ended {
		bans = append(bans, s.end())
	}
	return bans
}

// inside returns the sources inside prefix, sorted.
func (m *banModel) inside(prefix netip.Prefix) []*modelSource {
	prefix, _ = m.policy.source(prefix)
	found := slices.DeleteFunc(slices.Clone(m.sources), func(s *modelSource) bool { return !covers(prefix, s.prefix) })
	slices.SortFunc(found, func(a, b *modelSource) int { return a.prefix.Compare(b.prefix) })
	return found
}

func (m *banModel) lift(prefix netip.Prefix, now time.Time) []Ban {
	var lifted []Ban
	for _, s := range m.inside(prefix) {
		if s.ban == nil && s.wanted == nil {
			continue
		}
		lifted = append(lifted, s.end())
		if s.since.After(now) {
			s.since = now
		}
	}
	return lifted
}

func (m *banModel) pardon(prefix netip.Prefix, now time.Time) []Ban {
	source, _ := m.policy.source(prefix)
	if source.IsSingleIP() || source.Addr().Is6() && source.Bits() == 64 {
		m.get(source).grace = now.Add(m.policy.Grace)
	}
	for _, s := range m.inside(prefix) {
		s.offences = 0
		if s.ban != nil || s.wanted != nil {
			s.grace = now.Add(m.policy.Grace)
		}
	}
	lifted := m.lift(prefix, now)
	m.forget()
	return lifted
}

func (m *banModel) all(now time.Time) []Ban {
	var bans []Ban
	for _, s := range m.sources {
		if s.held(now) {
			bans = append(bans, *s.ban)
		}
	}
	slices.SortFunc(bans, func(a, b Ban) int { return a.Source.Compare(b.Source) })
	return bans
}

func (m *banModel) holds(addr netip.Addr, now time.Time) (Ban, bool) {
	for _, s := range m.around(host(addr)) {
		if s.held(now) {
			return *s.ban, true
		}
	}
	return Ban{}, false
}

// restart moves all times if the clock cannot be believed.
func (m *banModel) restart(before, now time.Time) {
	shift := time.Duration(0)
	if away := now.Sub(before); away < 0 || away > 30*24*time.Hour {
		shift = away
	}
	m.began, m.taken = time.Time{}, 0
	for _, s := range m.sources {
		s.wanted = nil
		if s.ban != nil && !s.ban.Until.IsZero() {
			ban := *s.ban
			ban.Until = ban.Until.Add(shift)
			s.ban = &ban
		}
		faded := s.offences - s.fresh(before)
		s.offences -= faded
		s.since = s.since.Add(time.Duration(faded) * m.policy.Memory)
		s.since = s.since.Add(shift)
		if !s.grace.IsZero() {
			s.grace = s.grace.Add(shift)
		}
	}
}
