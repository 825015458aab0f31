package detector

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// ban asks for the ban of a host and confirms it.
func ban(t *testing.T, b *Bans, addr string, now time.Time) Ban {
	t.Helper()
	ban, err := b.Want(Ban{Source: host(netip.MustParseAddr(addr))}, now)
	if err != nil {
		t.Fatalf("ban %s: %v", addr, err)
	}
	if !b.Confirm(ban.Source, now) {
		t.Fatalf("ban of %s was not under way", addr)
	}
	return ban
}

func holds(b *Bans, addr string, now time.Time) bool {
	_, held := b.Holds(netip.MustParseAddr(addr), now)
	return held
}

func TestBanLengths(t *testing.T) {
	tests := map[string]struct {
		policy BanPolicy
		pauses []time.Duration // after the end of each ban
		want   []time.Duration
	}{
		"defaults double up to a week": {
			pauses: make([]time.Duration, 9),
			want: []time.Duration{
				time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 16 * time.Hour,
				32 * time.Hour, 64 * time.Hour, 128 * time.Hour, 168 * time.Hour, 168 * time.Hour,
			},
		},
		"one offence forgotten in each day of peace": {
			pauses: []time.Duration{0, 0, 24 * time.Hour, 48 * time.Hour, 23 * time.Hour},
			want: []time.Duration{
				time.Hour, 2 * time.Hour, 4 * time.Hour, 4 * time.Hour, 2 * time.Hour, 4 * time.Hour,
			},
		},
		"all forgotten in the end": {
			pauses: []time.Duration{0, 48 * time.Hour},
			want:   []time.Duration{time.Hour, 2 * time.Hour, time.Hour},
		},
		"no memory": {
			policy: BanPolicy{Memory: -1},
			pauses: []time.Duration{0, 0},
			want:   []time.Duration{time.Hour, time.Hour, time.Hour},
		},
		"longer than the longest": {
			policy: BanPolicy{For: 30 * 24 * time.Hour},
			pauses: []time.Duration{0},
			want:   []time.Duration{30 * 24 * time.Hour, 30 * 24 * time.Hour},
		},
		"no end to doubling": {
			policy: BanPolicy{For: math.MaxInt64 / 3, Max: math.MaxInt64 - 1},
			pauses: []time.Duration{0},
			want:   []time.Duration{math.MaxInt64 / 3, math.MaxInt64 / 3 * 2},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b, now := NewBans(tt.policy), at
			var got []time.Duration
			for i := range tt.want {
				ban := ban(t, b, "203.0.113.7", now)
				got = append(got, ban.Until.Sub(now))
				if i < len(tt.pauses) {
					now = ban.Until.Add(tt.pauses[i])
					b.Expire(now)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestBanForever(t *testing.T) {
	b := NewBans(BanPolicy{For: Forever})
	if ban := ban(t, b, "203.0.113.7", at); !ban.Until.IsZero() {
		t.Errorf("ends %v, want never", ban.Until)
	}
	later := at.AddDate(200, 0, 0)
	if ended := b.Expire(later); len(ended) > 0 || !holds(b, "203.0.113.7", later) {
		t.Errorf("after 200 years %v ended", ended)
	}
}

func TestBanSources(t *testing.T) {
	tests := map[string]struct {
		prefix6    int
		source     string
		want       string
		also, free string // kept out as well, and not
	}{
		"IPv4 host":         {source: "203.0.113.7/32", want: "203.0.113.7/32", also: "::ffff:203.0.113.7", free: "203.0.113.8"},
		"IPv4-mapped":       {source: "::ffff:203.0.113.7/128", want: "203.0.113.7/32", also: "203.0.113.7", free: "::ffff:203.0.113.8"},
		"IPv6 by /64":       {source: "2001:db8:0:1::5/128", want: "2001:db8:0:1::/64", also: "2001:db8:0:1:ffff::1", free: "2001:db8:0:2::5"},
		"IPv6 by host":      {prefix6: 128, source: "2001:db8::5/128", want: "2001:db8::5/128", also: "2001:db8::5%eth0", free: "2001:db8::6"},
		"IPv6 by /48":       {prefix6: 48, source: "2001:db8::5/128", want: "2001:db8::/48", also: "2001:db8:0:ffff::", free: "2001:db8:1::"},
		"no such length":    {prefix6: 129, source: "2001:db8::5/128", want: "2001:db8::/64", also: "2001:db8::6", free: "2001:db8:1::"},
		"wider than needed": {source: "2001:db8:1:2:3::/56", want: "2001:db8:1::/56", also: "2001:db8:1:ff::", free: "2001:db8:1:100::"},
		"IPv4 prefix":       {source: "203.0.113.7/24", want: "203.0.113.0/24", also: "203.0.113.255", free: "203.0.112.255"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := NewBans(BanPolicy{Prefix6: tt.prefix6})
			ban, err := b.Want(Ban{Source: netip.MustParsePrefix(tt.source)}, at)
			if err != nil || ban.Source.String() != tt.want {
				t.Fatalf("banned %v, %v; want %s", ban.Source, err, tt.want)
			}
			b.Confirm(ban.Source, at)
			if !holds(b, tt.also, at) {
				t.Errorf("%s is not held", tt.also)
			}
			if holds(b, tt.free, at) {
				t.Errorf("%s is held", tt.free)
			}
		})
	}
}

func TestBanRefusals(t *testing.T) {
	source := netip.MustParsePrefix("2001:db8::/64")
	other := Ban{Source: netip.MustParsePrefix("203.0.113.7/32")}
	tests := map[string]struct {
		policy  BanPolicy
		prepare func(*Bans)
		ban     Ban
		want    error
		text    string
		there   bool // the ban that is in the way comes with it
	}{
		"no source": {want: ErrNoSource, text: "no source to ban"},
		"held": {
			prepare: func(b *Bans) { ban(t, b, "2001:db8::5", at) },
			ban:     Ban{Source: netip.MustParsePrefix("2001:db8::6/128")},
			want:    ErrHeld, text: "already banned", there: true,
		},
		"held by a wider one": {
			prepare: func(b *Bans) {
				wide, _ := b.Impose(Ban{Source: netip.MustParsePrefix("2001:db8::/32")}, at)
				b.Confirm(wide.Source, at)
			},
			ban: Ban{Source: source}, want: ErrHeld, text: "already banned", there: true,
		},
		"under way": {
			prepare: func(b *Bans) { must(b.Want(Ban{Source: source}, at)) },
			ban:     Ban{Source: source}, want: ErrWanted, text: "ban under way", there: true,
		},
		"grace": {
			prepare: func(b *Bans) { b.Pardon(netip.MustParsePrefix("2001:db8::5/128"), at.Add(-time.Minute)) },
			ban:     Ban{Source: source}, want: ErrGrace, text: "unbanned by hand a short while ago (10m0s)",
		},
		"too many in a minute": {
			policy:  BanPolicy{MaxPerMinute: 1},
			prepare: func(b *Bans) { must(b.Want(other, at.Add(-59*time.Second))) },
			ban:     Ban{Source: source}, want: ErrTooManyNew, text: "too many new bans in a minute (at most 1)",
		},
		"too many": {
			policy:  BanPolicy{MaxBans: 1},
			prepare: func(b *Bans) { ban(t, b, "203.0.113.7", at) },
			ban:     Ban{Source: source}, want: ErrTooManyBans, text: "too many bans (at most 1)",
		},
		"not too many a minute later": {
			policy:  BanPolicy{MaxPerMinute: 1},
			prepare: func(b *Bans) { must(b.Want(other, at.Add(-time.Minute))) },
			ban:     Ban{Source: source},
		},
		"grace over": {
			prepare: func(b *Bans) { b.Pardon(source, at.Add(-10*time.Minute)) },
			ban:     Ban{Source: source},
		},
		"no grace wanted": {
			policy:  BanPolicy{Grace: -1},
			prepare: func(b *Bans) { b.Pardon(source, at) },
			ban:     Ban{Source: source},
		},
		"failed before": {
			prepare: func(b *Bans) {
				failed, _ := b.Want(Ban{Source: source}, at)
				b.Fail(failed.Source)
			},
			ban: Ban{Source: source},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := NewBans(tt.policy)
			if tt.prepare != nil {
				tt.prepare(b)
			}
			got, err := b.Want(tt.ban, at)
			if !errors.Is(err, tt.want) || err != nil && err.Error() != tt.text {
				t.Errorf("error %v, want %v as %q", err, tt.want, tt.text)
			}
			if got.Source.IsValid() != (tt.there || tt.want == nil) {
				t.Errorf("returned the ban of %v", got.Source)
			}
		})
	}
}

func TestFailedBanIsNoOffence(t *testing.T) {
	b, source := NewBans(BanPolicy{}), netip.MustParsePrefix("203.0.113.7/32")
	for range 3 {
		wanted, err := b.Want(Ban{Source: source}, at)
		if err != nil || wanted.Until.Sub(at) != time.Hour {
			t.Fatalf("wanted until %v, %v; want for an hour", wanted.Until, err)
		}
		if holds(b, "203.0.113.7", at) || len(b.All(at)) > 0 {
			t.Fatal("in force before an output has confirmed it")
		}
		b.Fail(source)
	}
	if b.Confirm(source, at) {
		t.Error("a ban that has failed was confirmed")
	}
}

func TestImpose(t *testing.T) {
	hour, day := at.Add(time.Hour), at.Add(24*time.Hour)
	source := netip.MustParsePrefix("203.0.113.7/32")
	tests := map[string]struct {
		held   time.Time // end of the ban of source that is in force; at: none
		wide   time.Time // the same of its /24
		impose time.Time
		want   error
		until  time.Time // of the ban in force in the end
	}{
		"new":                         {held: at, wide: at, impose: day, until: day},
		"for ever":                    {held: at, wide: at},
		"over already":                {held: at, wide: at, impose: at, want: ErrEnded},
		"longer":                      {held: hour, wide: at, impose: day, until: day},
		"longer, for ever":            {held: hour, wide: at},
		"as long":                     {held: hour, wide: at, impose: hour, want: ErrHeld, until: hour},
		"shorter":                     {held: day, wide: at, impose: hour, want: ErrHeld, until: day},
		"shorter than for ever":       {wide: at, impose: hour, want: ErrHeld},
		"inside a wider, longer":      {held: at, wide: hour, impose: day, until: day},
		"inside a wider, but shorter": {held: at, wide: day, impose: hour, want: ErrHeld, until: day},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := NewBans(BanPolicy{MaxPerMinute: 1})
			for prefix, until := range map[string]time.Time{"203.0.113.7/32": tt.held, "203.0.113.0/24": tt.wide} {
				if until != at {
					first := must(b.Impose(Ban{Source: netip.MustParsePrefix(prefix), Until: until}, at))
					b.Confirm(first.Source, at)
				}
			}
			got, err := b.Impose(Ban{Source: source, Until: tt.impose, Origin: "operator"}, at)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err == nil {
				b.Confirm(got.Source, at)
			}
			there := slices.ContainsFunc(b.All(at), func(b Ban) bool { return b.Until.Equal(tt.until) })
			if there == errors.Is(tt.want, ErrEnded) {
				t.Errorf("bans are %v, want one until %v", b.All(at), tt.until)
			}
			if standing := b.Standing(source.Addr(), at); standing.Offences != 0 {
				t.Errorf("%d offences, want none", standing.Offences)
			}
		})
	}
}

func must(ban Ban, err error) Ban {
	if err != nil {
		panic(err)
	}
	return ban
}

// TestImposeFailed is about a ban that was to be made longer.
func TestImposeFailed(t *testing.T) {
	b := NewBans(BanPolicy{})
	first := ban(t, b, "203.0.113.7", at)
	longer := must(b.Impose(Ban{Source: first.Source}, at))
	if ended := b.Expire(first.Until); len(ended) > 0 {
		t.Errorf("%v ended while outputs were told to make it longer", ended)
	}
	b.Fail(longer.Source)
	if !holds(b, "203.0.113.7", at) {
		t.Error("the first ban is gone")
	}
	if ended := b.Expire(first.Until); len(ended) != 1 {
		t.Errorf("%v ended, want the first", ended)
	}
}

func TestLift(t *testing.T) {
	banned := []string{"203.0.113.7", "203.0.113.8", "198.51.100.1", "2001:db8:0:1::5", "2001:db8:0:2::5"}
	tests := map[string]struct{ prefix, want string }{
		"host":                 {"203.0.113.7/32", "[203.0.113.7/32]"},
		"IPv4-mapped host":     {"::ffff:203.0.113.7/128", "[203.0.113.7/32]"},
		"host of an IPv6 /64":  {"2001:db8:0:1::6/128", "[2001:db8:0:1::/64]"},
		"prefix and inside it": {"203.0.113.0/24", "[203.0.113.0/24 203.0.113.7/32 203.0.113.8/32]"},
		"wide":                 {"2001:db8::/32", "[2001:db8:0:1::/64 2001:db8:0:2::/64]"},
		"all of IPv4":          {"0.0.0.0/0", "[198.51.100.1/32 203.0.113.0/24 203.0.113.7/32 203.0.113.8/32]"},
		"unknown":              {"192.0.2.0/24", "[]"},
	}
	for name, tt := range tests {
		for how, pardon := range map[string]bool{"lifted": false, "pardoned": true} {
			t.Run(name+" "+how, func(t *testing.T) {
				b := NewBans(BanPolicy{})
				for _, addr := range banned {
					ban(t, b, addr, at)
				}
				b.Confirm(must(b.Impose(Ban{Source: netip.MustParsePrefix("203.0.113.0/24")}, at)).Source, at)
				lift := b.Lift
				if pardon {
					lift = b.Pardon
				}
				lifted := []netip.Prefix{}
				for _, ban := range lift(netip.MustParsePrefix(tt.prefix), at) {
					lifted = append(lifted, ban.Source)
				}
				if got := fmt.Sprint(lifted); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				for _, source := range lifted {
					if source.Bits() == 24 {
						continue // no source by the policy
					}
					standing := b.Standing(source.Addr(), at)
					if pardon && (standing.Offences > 0 || !standing.Grace.Equal(at.Add(DefaultBanGrace))) {
						t.Errorf("%v was pardoned, but has %+v", source, standing)
					}
					if !pardon && (standing.Offences != 1 || !standing.Since.Equal(at)) {
						t.Errorf("%v was lifted, but has %+v", source, standing)
					}
				}
			})
		}
	}
}

func TestLiftOnlyLeavesWhatIsInside(t *testing.T) {
	b := NewBans(BanPolicy{})
	ban(t, b, "203.0.113.7", at)
	wide := netip.MustParsePrefix("203.0.113.0/24")
	b.Confirm(must(b.Impose(Ban{Source: wide}, at)).Source, at)
	if lifted := b.LiftOnly(wide, at); len(lifted) != 1 || lifted[0].Source != wide {
		t.Errorf("lifted %v, want %v alone", lifted, wide)
	}
	if again := b.LiftOnly(wide, at); len(again) > 0 {
		t.Errorf("lifted %v once more", again)
	}
	if !holds(b, "203.0.113.7", at) || holds(b, "203.0.113.8", at) {
		t.Errorf("bans are %v, want that of the host alone", b.All(at))
	}
}

// TestLiftWhileUnderWay is about an unban that comes between an output's being
// told and its answer.
func TestLiftWhileUnderWay(t *testing.T) {
	b := NewBans(BanPolicy{})
	wanted := must(b.Want(Ban{Source: netip.MustParsePrefix("203.0.113.7/32")}, at))
	if lifted := b.Pardon(wanted.Source, at); len(lifted) != 1 {
		t.Errorf("%v lifted, want what the output was told", lifted)
	}
	if b.Confirm(wanted.Source, at) || holds(b, "203.0.113.7", at) {
		t.Error("in force although it was lifted")
	}
}

// TestBanClockSet is about live callers, whose times have a monotonic reading.
func TestBanClockSet(t *testing.T) {
	for _, by := range []time.Duration{-50 * 365 * 24 * time.Hour, -time.Hour, 3 * time.Hour, 20 * 365 * 24 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			began := time.Now()
			b := NewBans(BanPolicy{})
			ban(t, b, "203.0.113.7", began)
			b.Changes(began)

			soon := setClock(t, began.Add(59*time.Minute), by)
			if ended := b.Expire(soon); len(ended) > 0 || !holds(b, "203.0.113.7", soon) {
				t.Fatalf("%v ended early", ended)
			}
			want := soon.Add(time.Minute).Round(0)
			if got := b.All(soon)[0].Until.Round(0); !got.Equal(want) {
				t.Errorf("ends at %v by the new clock, want %v", got, want)
			}
			changes := b.Changes(soon)
			if !changes.Whole || len(changes.Sources) != 1 || !changes.Sources[0].Ban.Until.Round(0).Equal(want) {
				t.Errorf("changes are %+v, want all by the new clock", changes)
			}
			if again := b.Changes(soon); again.Whole || len(again.Sources) > 0 {
				t.Errorf("changes are %+v the second time, want none", again)
			}
			if ended := b.Expire(setClock(t, began.Add(time.Hour), by)); len(ended) != 1 {
				t.Errorf("%v ended after its hour", ended)
			}
		})
	}
}

// setClock returns t as it would be if the clock had been set by d after the
// process started. Package time has no way to make such a time.
func setClock(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	moved := at
	words := (*[2]uint64)(unsafe.Pointer(&moved)) // wall: a flag, 33 bits of seconds, 30 of nanoseconds
	words[0] += uint64(d/time.Second) << 30
	if moved.Sub(at) != 0 || moved.Round(0).Sub(at.Round(0)) != d {
		t.Fatalf("package time has changed: %v is not %v set by %v", moved, at, d)
	}
	return moved
}

func TestRestore(t *testing.T) {
	before := NewBans(BanPolicy{})
	hour := ban(t, before, "203.0.113.7", at)
	must(before.Impose(Ban{Source: netip.MustParsePrefix("203.0.113.99/32")}, at)) // never confirmed
	forever := must(before.Impose(Ban{Source: netip.MustParsePrefix("198.51.100.0/24")}, at))
	before.Confirm(forever.Source, at)
	before.Pardon(netip.MustParsePrefix("2001:db8::5/128"), at)
	saved := at.Add(5 * time.Minute)
	state := before.State(saved)

	tests := map[string]struct {
		now  time.Time
		left time.Duration // of the ban of an hour; the grace ends 50 minutes before
	}{
		"at once":                    {saved, 55 * time.Minute},
		"after a while":              {saved.Add(4 * time.Minute), 51 * time.Minute},
		"after the end":              {saved.Add(2 * time.Hour), -65 * time.Minute},
		"after a month":              {saved.Add(30 * 24 * time.Hour), 55*time.Minute - 30*24*time.Hour},
		"clock starts at 1970":       {time.Unix(0, 0), 55 * time.Minute},
		"clock is slow by a second":  {saved.Add(-time.Second), 55 * time.Minute},
		"clock is years ahead":       {saved.AddDate(50, 0, 0), 55 * time.Minute},
		"clock is two months ahead":  {saved.AddDate(0, 2, 0), 55 * time.Minute},
		"clock ahead beyond reckons": {saved.AddDate(1000, 0, 0), 55 * time.Minute},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := NewBans(BanPolicy{})
			if left := b.Restore(state, tt.now); left != 0 {
				t.Fatalf("%d left out", left)
			}
			got := b.sources.all[hour.Source].ban.Until.Sub(tt.now)
			if got != tt.left {
				t.Errorf("the ban has %v left, want %v", got, tt.left)
			}
			if grace := b.sources.all[netip.MustParsePrefix("2001:db8::/64")].grace.Sub(tt.now); grace != tt.left-50*time.Minute {
				t.Errorf("the grace has %v left, want %v", grace, tt.left-50*time.Minute)
			}
			ended := b.Expire(tt.now)
			if (len(ended) == 1) != (tt.left <= 0) || holds(b, "203.0.113.7", tt.now) != (tt.left > 0) {
				t.Errorf("%v ended", ended)
			}
			if !holds(b, "198.51.100.200", tt.now) || holds(b, "203.0.113.99", tt.now) {
				t.Errorf("bans are %v, want that without an end and none that was not confirmed", b.All(tt.now))
			}
			if n := b.Standing(hour.Source.Addr(), tt.now).Offences; (n == 1) != (tt.left > -24*time.Hour) {
				t.Errorf("%d offences", n)
			}
		})
	}
}

func TestRestoreBounded(t *testing.T) {
	large := NewBans(BanPolicy{MaxPerMinute: 100})
	for i := range 20 {
		addr := fmt.Sprint("203.0.113.", i)
		ban(t, large, addr, at)
		large.Pardon(netip.PrefixFrom(netip.MustParseAddr(fmt.Sprint("198.51.100.", i)), 32), at)
	}
	state := large.State(at)
	state.Sources = append(state.Sources, Standing{}, Standing{Source: netip.MustParsePrefix("192.0.2.1/32")})
	b := NewBans(BanPolicy{MaxBans: 8})
	if left := b.Restore(state, at); left != 12+2 {
		t.Errorf("%d left out, want 12 bans and 2 that say nothing", left)
	}
	if stats := b.Stats(); stats.Bans != 8 || stats.Remembered != 8 || stats.Graces != 8 {
		t.Errorf("%+v, want 8 of each", stats)
	}
}

func TestTooManyChanges(t *testing.T) {
	b := NewBans(BanPolicy{MaxPerMinute: math.MaxInt})
	for i := range uint32(maxChanged + 1) {
		ban, err := b.Want(Ban{Source: number(i)}, at)
		if err != nil {
			t.Fatal(err)
		}
		b.Confirm(ban.Source, at)
	}
	if len(b.feed.changed) > maxChanged {
		t.Errorf("%d changes are noted", len(b.feed.changed))
	}
	if changes := b.Changes(at); !changes.Whole || len(changes.Sources) != maxChanged+1 {
		t.Errorf("whole %v, %d sources", changes.Whole, len(changes.Sources))
	}
}

// number returns the host with a number in 203.0.0.0/8.
func number(i uint32) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 203<<24|i))), 32)
}

func TestSetBanPolicy(t *testing.T) {
	b := NewBans(BanPolicy{})
	ban(t, b, "203.0.113.7", at)
	ban(t, b, "203.0.113.8", at)
	b.SetPolicy(BanPolicy{MaxBans: 1, Memory: -1})
	if !holds(b, "203.0.113.7", at) || !holds(b, "203.0.113.8", at) {
		t.Error("a new policy has lifted a ban")
	}
	if _, err := b.Want(Ban{Source: number(1)}, at); !errors.Is(err, ErrTooManyBans) {
		t.Errorf("error %v, want %v", err, ErrTooManyBans)
	}
	if stats := b.Stats(); stats.Remembered != 1 || stats.OffencesForgotten != 1 {
		t.Errorf("%+v, want one source remembered", stats)
	}
	later := at.Add(2 * time.Hour)
	if ended := b.Expire(later); len(ended) != 2 {
		t.Errorf("%v ended", ended)
	}
	if stats := b.Stats(); stats.Bans != 0 || stats.Remembered != 0 {
		t.Errorf("%+v, want nothing remembered without a memory", stats)
	}
}

func TestStandingTellsTheWiderBan(t *testing.T) {
	b := NewBans(BanPolicy{})
	ban(t, b, "203.0.113.7", at)
	b.Lift(netip.MustParsePrefix("203.0.113.7/32"), at)
	wide := must(b.Impose(Ban{Source: netip.MustParsePrefix("203.0.113.0/24"), Origin: "operator"}, at))
	b.Confirm(wide.Source, at)
	got := b.Standing(netip.MustParseAddr("::ffff:203.0.113.7"), at)
	want := Standing{Source: netip.MustParsePrefix("203.0.113.7/32"), Ban: &wide, Offences: 1, Since: at}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestBansConcurrently is for the race detector, and counts.
func TestBansConcurrently(t *testing.T) {
	const workers, each = 8, 500
	b := NewBans(BanPolicy{MaxPerMinute: math.MaxInt})
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				source := number(uint32(w*each + i))
				if _, err := b.Want(Ban{Source: source}, at); err != nil {
					t.Error(err)
				}
				b.Confirm(source, at)
				b.Holds(source.Addr(), at)
				if i%100 == 0 {
					b.All(at)
					b.Changes(at)
					b.Stats()
				}
			}
		})
	}
	all.Wait()
	if n := len(b.All(at)); n != workers*each {
		t.Errorf("%d bans, want %d", n, workers*each)
	}
}

func TestHoldsAllocatesNothing(t *testing.T) {
	b := filledBans(t, 1000)
	held, free := number(7).Addr(), netip.MustParseAddr("2001:db8::5")
	if n := testing.AllocsPerRun(100, func() {
		b.Holds(held, at)
		b.Holds(free, at)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func filledBans(tb testing.TB, n int) *Bans {
	b := NewBans(BanPolicy{MaxPerMinute: math.MaxInt, MaxBans: math.MaxInt})
	for i := range uint32(n) {
		ban, err := b.Want(Ban{Source: number(i)}, at.Add(time.Duration(i)))
		if err != nil {
			tb.Fatal(err)
		}
		b.Confirm(ban.Source, at)
	}
	return b
}

func BenchmarkBans(b *testing.B) {
	const held = DefaultMaxBans
	b.Run("want and confirm, end", func(b *testing.B) {
		bans := filledBans(b, held)
		i := uint32(held)
		b.ReportAllocs()
		for b.Loop() {
			now := at.Add(time.Duration(i))
			ban, err := bans.Want(Ban{Source: number(i)}, now)
			if err != nil {
				b.Fatal(err)
			}
			bans.Confirm(ban.Source, now)
			bans.Expire(now.Add(time.Hour - held))
			i++
		}
	})
	b.Run("want, held", func(b *testing.B) {
		bans := filledBans(b, held)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := bans.Want(Ban{Source: number(5)}, at); err == nil {
				b.Fatal("not held")
			}
		}
	})
	b.Run("holds", func(b *testing.B) {
		bans, addr := filledBans(b, held), number(5).Addr()
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := bans.Holds(addr, at); !ok {
				b.Fatal("not held")
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		bans := filledBans(b, held)
		b.ReportAllocs()
		for b.Loop() {
			bans.All(at)
		}
	})
}
