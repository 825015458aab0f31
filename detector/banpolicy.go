package detector

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Forever is the length of a ban that lasts until somebody lifts it.
const Forever = time.Duration(math.MaxInt64)

// What a [BanPolicy] means where it says nothing.
const (
	DefaultBanFor        = time.Hour
	DefaultBanMax        = 7 * 24 * time.Hour
	DefaultBanMemory     = 24 * time.Hour
	DefaultBanGrace      = 10 * time.Minute
	DefaultBanPrefix6    = 64
	DefaultBansPerMinute = 600
	DefaultMaxBans       = 100_000
)

// A BanPolicy says how long bans last and how many there may be. The zero value
// of each field means the default beside it.
type BanPolicy struct {
	// For is how long a first ban lasts (DefaultBanFor, Forever for no end). Each
	// further offence doubles it, up to Max (DefaultBanMax, or For if that is
	// longer). A probe during a ban is no offence: it neither prolongs the ban
	// nor counts, because the packets of whoever is kept out are still seen.
	For, Max time.Duration

	// Memory is how long it takes after the end of a ban for one offence to be
	// forgotten, and then for each before it (DefaultBanMemory). If it is
	// negative, none is remembered and all bans last For.
	Memory time.Duration

	// Grace is how long a pardoned source is not banned by the policy
	// (DefaultBanGrace; negative: not at all).
	Grace time.Duration

	// Prefix6 is how many bits of an IPv6 address make a source
	// (DefaultBanPrefix6), as a host has all addresses below them to choose from.
	// 128 bans hosts. IPv4 sources are always hosts.
	Prefix6 int

	// MaxPerMinute bounds the new bans in a minute (DefaultBansPerMinute), so
	// that a flood of forged sources cannot keep everybody out. What was decided
	// elsewhere (Impose) is exempt: nobody can forge it, and a list of many
	// sources comes at once.
	MaxPerMinute int

	// MaxBans bounds the bans, the sources whose offences are remembered and the
	// graces, each (DefaultMaxBans). Nothing is exempt, the operator neither, as
	// the bound is there for the memory of this host and of its kernel: a list
	// imposed without a bound would exhaust both. Whoever must ban one more lifts
	// one.
	MaxBans int
}

// withDefaults returns the policy with all fields set and in range.
func (p BanPolicy) withDefaults() BanPolicy {
	orDefault(&p.For, DefaultBanFor)
	orDefault(&p.Max, max(p.For, DefaultBanMax))
	orDefault(&p.MaxPerMinute, DefaultBansPerMinute)
	orDefault(&p.MaxBans, DefaultMaxBans)
	if p.Memory == 0 {
		p.Memory = DefaultBanMemory
	}
	p.Memory = min(p.Memory, Forever/maxOffences)
	if p.Grace == 0 {
		p.Grace = DefaultBanGrace
	}
	if p.Prefix6 <= 0 || p.Prefix6 > 128 {
		p.Prefix6 = DefaultBanPrefix6
	}
	return p
}

func orDefault[T ~int | ~int64](value *T, def T) {
	if *value <= 0 {
		*value = def
	}
}

// source returns what a ban of prefix keeps out: an IPv4-mapped prefix is IPv4,
// and an IPv6 one is no narrower than Prefix6.
func (p *BanPolicy) source(prefix netip.Prefix) (netip.Prefix, error) {
	prefix = canonical(prefix)
	if !prefix.IsValid() {
		return prefix, ErrNoSource
	}
	if prefix.Addr().Is6() && prefix.Bits() > p.Prefix6 {
		return prefix.Addr().Prefix(p.Prefix6)
	}
	return prefix, nil
}

// isSource reports whether a ban by the policy can be of prefix.
func (p *BanPolicy) isSource(prefix netip.Prefix) bool {
	return prefix.IsSingleIP() || prefix.Addr().Is6() && prefix.Bits() == p.Prefix6
}

// maxOffences bounds how many offences of a source are remembered. With the
// defaults the ninth makes a ban as long as bans get.
const maxOffences = 32

// until returns when a ban that begins now ends, if it is the source's so
// manieth offence.
func (p *BanPolicy) until(now time.Time, offence int) time.Time {
	length := min(p.For, p.Max)
	for ; offence > 1 && length < p.Max; offence-- {
		if length > p.Max/2 {
			length = p.Max
		} else {
			length *= 2
		}
	}
	if length == Forever {
		return time.Time{}
	}
	return now.Add(length)
}

// Why there is no new ban. Errors of [Bans] are these or wrap them, and their
// texts can stand in [Event.Reason].
var (
	ErrNoSource    = errors.New("no source to ban")
	ErrEnded       = errors.New("ban is over already")
	ErrHeld        = errors.New("already banned")
	ErrWanted      = errors.New("ban under way")
	ErrGrace       = errors.New("unbanned by hand a short while ago")
	ErrTooManyNew  = errors.New("too many new bans in a minute")
	ErrTooManyBans = errors.New("too many bans")
)

// refusals are errors whose texts depend on the policy, made once because a
// flood would have them made for each packet.
type refusals struct{ grace, tooManyNew, tooManyBans error }

func (p *BanPolicy) refusals() refusals {
	return refusals{
		grace:       fmt.Errorf("%w (%v)", ErrGrace, p.Grace),
		tooManyNew:  fmt.Errorf("%w (at most %d)", ErrTooManyNew, p.MaxPerMinute),
		tooManyBans: fmt.Errorf("%w (at most %d)", ErrTooManyBans, p.MaxBans),
	}
}
