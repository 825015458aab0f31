package firewall

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// A tending is the work beside the calls: to look whether the firewall still is
// as it should be, and to mend it.
type tending struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (t *tending) stop() {
	t.cancel()
	t.done.Wait()
}

// tendLocked begins to tend the firewall unless that is going on.
func (m *Module) tendLocked() {
	if m.tending != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &tending{cancel: cancel}
	changed := make(chan struct{}, 1)
	t.done.Go(func() { m.tend(ctx, changed) })
	t.done.Go(func() {
		err := m.backend.watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default: // it is known already
			}
		})
		if err != nil && ctx.Err() == nil {
			slog.Warn("changes by others will be noticed late", "error", err, "after", period.String())
		}
	})
	m.tending = t
}

// tend compares and mends until ctx ends.
func (m *Module) tend(ctx context.Context, changed <-chan struct{}) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	clock := wallClock{time.Now()}
	nextFull := time.Now().Add(fullPeriod)
	var told string // the failure that was logged last
	for {
		thorough := false
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case now := <-ticker.C:
			thorough = clock.wasSet() || now.After(nextFull)
		}
		began := time.Now()
		err := m.mend(ctx, thorough)
		if thorough {
			nextFull = time.Now().Add(max(fullPeriod, 100*time.Since(began)))
		}
		told = tell(err, told)
		select {
		case <-ctx.Done():
		case <-time.After(pause): // whoever changes it all the time must not keep us busy
		}
	}
}

// tell logs a failure that is not the one that was told last, and returns it.
func tell(err error, told string) string {
	switch {
	case err == nil:
		return ""
	case err.Error() != told && !errors.Is(err, context.Canceled):
		slog.Error("the firewall cannot be checked or put right", "error", err)
	}
	return err.Error()
}

// mend looks whether the firewall is as it should be, and puts right what is not.
// Ban calls need not wait while it reads.
func (m *Module) mend(ctx context.Context, thorough bool) error {
	bans, err := m.doubted(ctx, thorough)
	if err != nil || bans == nil {
		return err
	}
	if holds, err := m.backend.holds(ctx, bans); err == nil && holds {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.putRightLocked(ctx) // if it was not a ban call that changed it meanwhile
}

// doubted returns the bans to compare with the firewall, or nil if there is no
// reason to.
func (m *Module) doubted(ctx context.Context, thorough bool) (map[netip.Prefix]time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bans.dropOver(time.Now())
	if !m.certain {
		return nil, m.putRightLocked(ctx)
	}
	undisturbed, err := m.backend.undisturbed(ctx, m.bans.until)
	if err != nil {
		m.certain = false
		return nil, err
	}
	if undisturbed && !thorough {
		return nil, nil
	}
	return maps.Clone(m.bans.until), nil
}

// putRightLocked replaces what the firewall holds if that is not what it should.
func (m *Module) putRightLocked(ctx context.Context) error {
	holds, err := m.backend.holds(ctx, m.bans.until)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && holds:
		m.certain = true
		return nil
	}
	slog.Warn("the firewall was not as it should be; putting the bans back", "bans", m.bans.len())
	return m.replaceLocked(ctx)
}

// A wallClock notices when the clock is set, or stood still while the machine
// slept: the kernel's timeouts do not follow.
type wallClock struct{ last time.Time }

// wasSet reports whether that happened since the last call.
func (c *wallClock) wasSet() bool {
	now := time.Now()
	elapsed, shown := now.Sub(c.last), now.Round(0).Sub(c.last.Round(0))
	c.last = now
	return (shown - elapsed).Abs() > tolerance/2
}
