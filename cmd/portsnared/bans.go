package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/blockfile"
	"github.com/portsnare/portsnare/internal/guard"
	"github.com/portsnare/portsnare/internal/state"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/runcmd"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// newEnforcement opens what bans, and returns how bans are put in force. Where
// nobody is banned, the ledger may still have to remember who was reported.
func (d *daemon) newEnforcement() (e outputs.Enforcement, err error) {
	e.DryRun = d.config.Ban.DryRun
	if d.bansAnybody() {
		if err := d.openGuard(); err != nil {
			return e, err
		}
		e.Spared = d.guard.Spared
	}
	if d.config.Ban.Evidence != conf.EvidenceOff && (!d.native || d.config.ActsAsPortSentry()) {
		classic := newClassicBans(d.config, d.makeHostsDeny, d.mode)
		e.Outputs = append(e.Outputs, outputs.NamedBans{Name: "classic", Output: classic})
		e.OneByOne = true // commands take their time
		e.Deadline = 4 * runcmd.DefaultTimeout
	}
	if path := d.config.Ban.File; path != "" {
		warn := func(w conf.Warning) { d.warn(w) }
		if d.blocked, err = blockfile.Open(path, d.config.Ban.FileFormat, warn); err != nil {
			return e, err
		}
		e.Ledger = ledger{d.blocked}
		e.LedgerOfAll = d.config.Ban.FileFormat == conf.BanFilePortSentry1
	} else if d.native && d.bansAnybody() {
		if err := d.openBans(); err != nil {
			return e, err
		}
		e.Bans = d.bans
	}
	return e, d.openModules(&e)
}

// bansAnybody reports whether there may ever be a ban: by a scan, or by order of
// the operator where an output could put it in force.
func (d *daemon) bansAnybody() bool {
	return d.config.Ban.Evidence != conf.EvidenceOff || d.native && len(d.config.Outputs) > 0
}

// openGuard begins to find out who must never be banned.
func (d *daemon) openGuard() (err error) {
	traps, _ := d.config.Opened()
	never := d.config.Ban.Never
	d.guarded = guard.Config{Allow: never.Prefixes, Names: never.Names, SSHPorts: d.config.Ban.SSHPorts, Traps: traps}
	if d.guard, err = guard.Watch(d.guarded, d.log); err != nil {
		return fmt.Errorf("find out who must never be banned: %w", err)
	}
	return nil
}

// openBans takes up the bans of the last run, and what the operator allowed.
func (d *daemon) openBans() error {
	if err := d.openState(); err != nil {
		return err
	}
	kept, err := d.state.LoadBans()
	if err != nil {
		return err
	}
	d.bans = detector.NewBans(d.config.Ban.Policy())
	if left := d.bans.Restore(kept, time.Now()); left > 0 {
		d.log.WithField("sources", left).Warn("more bans were kept than there may be; the rest is lifted")
	}
	allowed, err := d.state.LoadAllowed()
	if err != nil {
		return err
	}
	d.allowed = allowed
	d.applyAllowed()
	d.saver.daemon, d.saver.off = d, d.config.Ban.DryRun
	d.liftSpared()
	return nil
}

// liftSpared gives up the bans of the last run that must not be any longer.
func (d *daemon) liftSpared() {
	now := time.Now()
	for _, ban := range d.bans.All(now) {
		if why, spared := d.guard.Spared(ban.Source); spared {
			d.bans.LiftOnly(ban.Source, now)
			d.log.WithField("source", ban.Source).Warn("ban of the last run lifted, the source is never to be banned: " + why)
		}
	}
}

// applyAllowed has the guard spare what the operator allowed besides what the
// configuration does.
func (d *daemon) applyAllowed() {
	config := d.guarded
	config.Allow = append(slices.Clip(config.Allow), d.allowed...)
	d.guard.Configure(config)
}

// openState opens the file of what outlives the daemon, unless it is open.
func (d *daemon) openState() (err error) {
	if d.state != nil {
		return nil
	}
	d.state, err = state.Open(d.config.State, func(text string) { d.log.Warn(text) })
	return err
}

const (
	// saveInterval is how long a ban may be in force before it is on the disk.
	saveInterval = 250 * time.Millisecond

	// restateInterval is how often the file is told that the daemon lives, so
	// that after a kill bans are known to have run on.
	restateInterval = time.Minute
)

// saveBans keeps bans on the disk until ctx ends.
func (d *daemon) saveBans(ctx context.Context) error {
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			_ = d.saver.save(false) // the log tells
		}
	}
}

// A banSaver saves what has changed of the bans, and everything after a failure.
type banSaver struct {
	*daemon
	off bool // in a dry run, whose bans are none

	mu      sync.Mutex
	failing bool // the last save has failed, and the log says so; guarded by mu
	last    time.Time
}

// save saves if there is anything to save, or if it must.
func (s *banSaver) save(must bool) error {
	if s.off {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	changes := s.bans.Changes(now)
	if s.failing {
		changes = s.bans.State(now)
	}
	if len(changes.Sources) == 0 && !changes.Whole && !must && now.Sub(s.last) < restateInterval {
		return nil
	}
	s.last = now
	err := s.state.SaveBans(changes)
	switch {
	case err != nil && !s.failing:
		s.log.WithError(err).Error("bans are not saved; they end with the daemon")
	case err == nil && s.failing:
		s.log.Info("bans are saved again")
	}
	s.failing = err != nil
	return err
}

// flushBlocked writes down banned sources that could not be written down before.
func (d *daemon) flushBlocked() {
	if d.blocked == nil {
		return
	}
	err := d.blocked.Flush()
	switch {
	case err != nil && !d.unwritten:
		d.log.WithError(err).Error("banned sources are still not written down; this is tried every second")
	case err == nil && d.unwritten:
		d.log.Info("banned sources are written down again")
	}
	d.unwritten = err != nil
}

// A ledger remembers banned sources in PortSentry's file.
type ledger struct{ *blockfile.File }

func (l ledger) Add(ev *detector.Event) error {
	return l.File.Add(logline.BlockedOf(ev, time.Local))
}
