package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/control"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/parsers/conf"
)

// A controller lets the administrator's tool control the daemon.
type controller struct {
	*daemon
	fixed control.Status // what does not change while the daemon runs

	mu sync.Mutex // guards daemon.allowed
}

// newController must be called before the daemon can be told to reload.
func (d *daemon) newController() *controller {
	return &controller{daemon: d, fixed: control.Status{
		Version: version.String(), PID: os.Getpid(), Since: time.Now(),
		Mode: string(d.config.Mode), Config: d.configFile,
		Banning: d.config.Ban.Evidence != conf.EvidenceOff, DryRun: d.config.Ban.DryRun,
	}}
}

var _ control.Daemon = (*controller)(nil)

// listen makes the control socket, before anything runs that its making would
// disturb. Detection is worth more than it: without, the daemon watches all the
// same.
func (d *daemon) listen() {
	if !d.native || d.config.Control == conf.NoControl {
		return
	}
	l, err := control.Listen(d.config.Control)
	if err != nil {
		d.log.WithError(err).Warn("the administrator's tool cannot reach this daemon")
		return
	}
	d.orders = l
}

// serve answers the administrator's tool until ctx ends.
func (c *controller) serve(ctx context.Context) error {
	if err := control.Serve(ctx, c.orders, c); err != nil {
		c.log.WithError(err).Warn("the administrator's tool cannot reach this daemon any longer")
	}
	return nil
}

func (c *controller) Status() control.Status {
	engine, dispatcher, lost := c.engine.Stats(), c.dispatcher.Stats(), c.losses()
	s := c.fixed
	s.Probes, s.Reported, s.Lost = engine.Probes, engine.Reported, lost.packets+lost.events
	s.Banned, s.Failed = dispatcher.Bans.Banned, dispatcher.Bans.Failed
	s.Spared, s.Refused = dispatcher.Bans.Spared, dispatcher.Bans.Refused
	if c.bans != nil {
		s.Bans = c.bans.Stats().Bans
	}
	return s
}

func (c *controller) Bans() []control.Ban {
	if c.bans == nil {
		return nil
	}
	all := toControl(c.bans.All(time.Now()))
	if c.fixed.DryRun {
		for i := range all {
			all[i].Reason = "dry run, not in force: " + all[i].Reason
		}
	}
	return all
}

func toControl(bans []detector.Ban) []control.Ban {
	all := make([]control.Ban, len(bans))
	for i, b := range bans {
		all[i] = control.Ban{Source: b.Source, Origin: b.Origin, Reason: b.Reason}
		if !b.Until.IsZero() {
			all[i].Until = &b.Until
		}
	}
	return all
}

// maxReason bounds the reason of a ban, which is shown in tables and events.
const maxReason = 200

func (c *controller) Ban(ctx context.Context, r control.BanRequest) (control.Ban, error) {
	ban := detector.Ban{Source: r.Source, Evidence: detector.Proven, Origin: "operator", Reason: r.Reason}
	if r.For > 0 {
		ban.Until = time.Now().Add(time.Duration(r.For))
	}
	switch {
	case !r.Source.IsValid():
		return control.Ban{}, &control.Error{Code: control.BadRequest, Text: "no source"}
	case len(r.Reason) > maxReason || strings.ContainsFunc(r.Reason, unicode.IsControl) || !utf8.ValidString(r.Reason):
		return control.Ban{}, &control.Error{Code: control.BadRequest, Text: fmt.Sprintf("the reason is not one line of %d bytes at most", maxReason)}
	}
	ban, err := c.dispatcher.Ban(context.WithoutCancel(ctx), ban) // an order stands, though its giver goes
	if errors.Is(err, detector.ErrHeld) || errors.Is(err, detector.ErrWanted) {
		err = nil // by a ban that lasts at least as long
	}
	if err == nil {
		err = c.save()
	}
	return toControl([]detector.Ban{ban})[0], controlError(err)
}

var errNotSaved = errors.New("done, but not saved, so that it ends with the daemon")

// save has what the operator ordered on the disk before the answer.
func (c *controller) save() error {
	if err := c.saver.save(true); err != nil {
		return fmt.Errorf("%w: %w", errNotSaved, err)
	}
	return nil
}

// controlError returns err as the client is told it.
func controlError(err error) error {
	if err == nil {
		return nil
	}
	code := control.NoOutput
	switch {
	case errors.Is(err, errNotSaved):
		code = control.Internal
	case errors.As(err, new(*outputs.SparedError)):
		code = control.NeverBanned
	case errors.Is(err, outputs.ErrNotBanning), errors.Is(err, outputs.ErrDryRun):
		code = control.NotBanning
	case errors.Is(err, detector.ErrTooManyBans):
		code = control.TooMany
	case errors.Is(err, detector.ErrNoSource), errors.Is(err, detector.ErrEnded):
		code = control.BadRequest
	}
	return &control.Error{Code: code, Text: err.Error()}
}

func (c *controller) Unban(ctx context.Context, prefix netip.Prefix) ([]control.Ban, error) {
	bans, err := c.dispatcher.Unban(context.WithoutCancel(ctx), prefix)
	if len(bans) > 0 {
		if err != nil {
			err = fmt.Errorf("lifted, but not carried out yet (it will be, once the output works): %w", err)
		}
		err = errors.Join(err, c.save())
	}
	if err == nil && len(bans) == 0 {
		if wider, held := c.bans.Holds(prefix.Addr(), time.Now()); held {
			return nil, &control.Error{Code: control.NotFound, Text: "is banned with its network; unban " + wider.Source.String()}
		}
	}
	return toControl(bans), controlError(err)
}

func (c *controller) Allowed() []control.Allowed {
	if c.guard == nil {
		return nil
	}
	var all []control.Allowed
	for _, entry := range c.guard.Allowed() {
		all = append(all, control.Allowed{Prefix: entry.Prefix, Why: entry.Why})
	}
	return all
}

func (c *controller) Allow(ctx context.Context, r control.AllowRequest) ([]control.Ban, error) {
	if err := c.setAllowed(r.Prefix, true); err != nil {
		return nil, err
	}
	bans, err := c.dispatcher.Unban(context.WithoutCancel(ctx), r.Prefix)
	bans = append(bans, c.dispatcher.Spare(context.WithoutCancel(ctx))...) // wider ones
	if len(bans) > 0 {
		if err != nil {
			err = fmt.Errorf("lifted, but not carried out yet (it will be, once the output works): %w", err)
		}
		err = errors.Join(err, c.save())
	}
	return toControl(bans), controlError(err)
}

func (c *controller) Disallow(_ context.Context, r control.AllowRequest) error {
	c.mu.Lock()
	known := slices.Contains(c.allowed, r.Prefix)
	c.mu.Unlock()
	if !known {
		return &control.Error{Code: control.NotFound, Text: r.Prefix.String() + " was not allowed by \"portsnare allow\""}
	}
	return c.setAllowed(r.Prefix, false)
}

// setAllowed changes what the operator has never banned, first on the disk.
func (c *controller) setAllowed(prefix netip.Prefix, allowed bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.bans == nil:
		return controlError(outputs.ErrNotBanning)
	case !prefix.IsValid():
		return &control.Error{Code: control.BadRequest, Text: "no prefix"}
	}
	if err := c.state.SaveAllowed(prefix, allowed); err != nil {
		return err
	}
	without := slices.DeleteFunc(slices.Clone(c.allowed), func(p netip.Prefix) bool { return p == prefix })
	if allowed {
		without = append(without, prefix)
	}
	c.daemon.allowed = without
	c.applyAllowed()
	return nil
}

func (c *controller) Outputs() []control.Output {
	var all []control.Output
	for _, lane := range c.dispatcher.Stats().Outputs {
		o := control.Output{
			Name: lane.Name, Kind: "built in", State: "running",
			Delivered: lane.Delivered, Dropped: lane.Dropped, Failures: lane.Failures,
		}
		i := slices.IndexFunc(c.modules, func(m runningModule) bool { return m.name == lane.Name })
		if i >= 0 {
			c.modules[i].describe(&o)
		}
		all = append(all, o)
	}
	return all
}

// describe says of a module what its lane does not know.
func (m *runningModule) describe(o *control.Output) {
	status, spool := m.module.Status(), m.spool.Stats()
	o.Kind, o.State, o.Version = "module", string(status.State), status.Description.Version
	o.PID, o.Since, o.Restarts = status.PID, &status.Since, int(status.Restarts)
	o.Delivered, o.Waiting = spool.Delivered, uint64(spool.Waiting)
	o.Dropped += spool.Dropped + spool.Unreadable
	o.Failures += spool.Failures
	if status.LastError != nil {
		o.Fault = status.LastError.Error()
	}
}
