// Package firewall is the output module that keeps banned sources out with the
// kernel's packet filter: with nftables, or where the kernel lacks it with
// iptables and ipset. What it says is in force is in the kernel, and whatever
// somebody else changes there it puts back.
//
// docs/firewall.md describes it for administrators.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

var (
	_ outputapi.Module    = (*Module)(nil)
	_ outputapi.BanKeeper = (*Module)(nil)
	_ outputapi.Flusher   = (*Module)(nil)
)

const (
	// maxBans bounds the bans that are kept, and the memory they take in the
	// kernel. More are refused, each with an error.
	maxBans = 1 << 20

	// period is how often the firewall is compared with what it should be.
	period = 3 * time.Second

	// pause is how long comparisons are apart that others cause by changes.
	pause = 200 * time.Millisecond

	// fullPeriod is how often a comparison trusts nothing and reads everything,
	// unless that takes more than a hundredth of the time.
	fullPeriod = 5 * time.Minute
)

// A backend keeps bans in one kind of packet filter. The maps hold until when a
// source is banned; the zero time is for ever, and a time in the past is no ban.
// A backend is safe for concurrent use only where a method says so.
type backend interface {
	// check says why this backend cannot be used here, and changes nothing.
	check(ctx context.Context) error

	// prepare makes what is missing and leaves bans that are there.
	prepare(ctx context.Context) error

	// replace makes these all bans that there are. Bans that were and stay are
	// in force all the time.
	replace(ctx context.Context, bans map[netip.Prefix]time.Time) error

	// change makes after of before: all bans, before and after, of the regions
	// that change. It may fail if the firewall does not hold what it should.
	change(ctx context.Context, before, after map[netip.Prefix]time.Time) error

	// undisturbed reports by cheap signs whether nobody else has changed the
	// firewall since the last call. Where it cannot tell, it says no.
	undisturbed(ctx context.Context, bans map[netip.Prefix]time.Time) (bool, error)

	// holds reads the firewall and reports whether these are all bans that there
	// are. It may take seconds, and the other methods may be called meanwhile.
	holds(ctx context.Context, bans map[netip.Prefix]time.Time) (bool, error)

	// remove takes away all that was made.
	remove(ctx context.Context) error

	// watch calls changed whenever somebody has changed the firewall, until ctx
	// ends. Where nobody tells, it returns nil at once. The other methods may be
	// called meanwhile.
	watch(ctx context.Context, changed func()) error

	close() error
}

// A Module keeps bans in the packet filter. Its zero value is ready to be
// configured.
//
// The end of a ban is by the wall clock, as Portsnare tells it: the kernel gets
// the time that is left and counts it down. When the clock is set, or the machine
// slept, the kernel's rest is corrected at the next comparison, so that a ban is
// in force until the very time that is said of it. Whether a clock that was set
// is to change that time is for the keeper of the bans to decide.
type Module struct {
	settings settings

	mu      sync.Mutex
	backend backend
	bans    *list    // what is to be in force
	certain bool     // the firewall took them when it was last told
	tending *tending // nil: it is left alone
}

// Info says what the module is.
func (m *Module) Info() outputapi.Info {
	return outputapi.Info{
		Name:         "firewall",
		Version:      version.String(),
		Summary:      "keeps banned sources out with nftables, or with iptables and ipset",
		Capabilities: []string{"net_admin"},
	}
}

// Configure chooses the back end and prepares it. Bans that an earlier run left
// stay until the first SetBans.
func (m *Module) Configure(ctx context.Context, c outputapi.Configuration) error {
	s, err := readSettings(c)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settings = s
	m.bans = newList()
	if m.backend, err = choose(ctx, s); err != nil {
		return err
	}
	if c.Check {
		return m.backend.close()
	}
	return m.backend.prepare(ctx)
}

// choose returns the back end that the settings ask for, once it has said that
// it can work.
func choose(ctx context.Context, s settings) (backend, error) {
	var b backend = newNFT(s)
	if s.Backend == useIPSet {
		b = newIPSet(s)
	}
	err := b.check(ctx)
	if err == nil {
		return b, nil
	}
	b.close()
	if s.Backend != auto || !errors.Is(err, errNoNFTables) {
		return nil, err
	}
	b = newIPSet(s)
	if second := b.check(ctx); second != nil {
		return nil, errors.Join(err, second)
	}
	return b, nil
}

// SetBans makes bans all that are in force, in one step.
func (m *Module) SetBans(ctx context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.backend == nil {
		return nil, errNotConfigured
	}
	m.tendLocked() // if it fails now, it may work soon
	m.bans = newList()
	results := m.takeLocked(bans, nil)
	if err := m.replaceLocked(ctx); err != nil {
		return nil, err
	}
	return results, nil
}

// ChangeBans lifts remove and then puts add in force, in one step.
func (m *Module) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.backend == nil {
		return nil, errNotConfigured
	}
	m.tendLocked()
	var sources []netip.Prefix
	for _, b := range append(slices.Clip(remove), add...) {
		if source, err := normalize(b.Source); err == nil {
			sources = append(sources, source)
		}
	}
	regions := m.bans.regions(sources)
	before := m.bans.within(regions)
	results := m.takeLocked(add, remove)
	if err := m.changeLocked(ctx, before, m.bans.within(regions)); err != nil {
		return nil, err
	}
	return results, nil
}

// takeLocked enters in the list what it can and says what it refuses.
func (m *Module) takeLocked(add, remove []detector.Ban) []outputapi.Result {
	for _, b := range remove {
		if source, err := normalize(b.Source); err == nil {
			m.bans.drop(source)
		}
	}
	results := make([]outputapi.Result, len(add))
	for i, b := range add {
		source, err := normalize(b.Source)
		if err == nil && m.bans.len() >= maxBans && !m.bans.holds(source) {
			err = errFull
		}
		if err != nil {
			results[i].Err = err
			continue
		}
		// Without its monotonic part a time is compared by the wall clock.
		m.bans.put(source, b.Until.Round(0))
	}
	return results
}

var (
	errNotConfigured = errors.New("a ban before any settings")

	errFull      = fmt.Errorf("the firewall holds %d bans, its limit", maxBans)
	errNoSource  = errors.New("a ban without a source")
	errEverybody = errors.New("a ban of all addresses")

	// errNoCapability is the remedy when the kernel forbids something.
	errNoCapability = errors.New("grant the module the capability net_admin")
)

// normalize returns what the firewall bans for source: IPv4-mapped addresses are
// IPv4, on the wire too.
func normalize(source netip.Prefix) (netip.Prefix, error) {
	if source.Addr().Is4In6() && source.Bits() >= 96 {
		source = netip.PrefixFrom(source.Addr().Unmap(), source.Bits()-96)
	}
	source = source.Masked()
	switch {
	case !source.IsValid():
		return source, errNoSource
	case source.Bits() == 0:
		return source, errEverybody
	}
	return source, nil
}

func (m *Module) replaceLocked(ctx context.Context) error {
	m.bans.dropOver(time.Now())
	err := m.backend.replace(ctx, m.bans.until)
	m.certain = err == nil
	return err
}

// changeLocked changes the firewall, or builds it anew where it turns out not to
// hold what it should.
func (m *Module) changeLocked(ctx context.Context, before, after map[netip.Prefix]time.Time) error {
	if !m.certain {
		return m.replaceLocked(ctx)
	}
	if err := m.backend.change(ctx, before, after); err != nil {
		slog.Debug("firewall differs from what it should be", "error", err)
		return m.replaceLocked(ctx)
	}
	return nil
}

// Flush ends the comparisons, and takes the bans away unless they are to be
// kept. It is the end of the module's work; SetBans would begin it anew.
func (m *Module) Flush(ctx context.Context) error {
	m.mu.Lock()
	t := m.tending
	m.tending = nil
	m.mu.Unlock()
	if t != nil {
		t.stop()
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.backend == nil {
		return nil
	}
	m.certain = false
	var err error
	if !m.settings.Keep {
		err = m.backend.remove(ctx)
	}
	return errors.Join(err, m.backend.close())
}
