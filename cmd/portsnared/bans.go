package main

import (
	"fmt"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/blockfile"
	"github.com/portsnare/portsnare/internal/guard"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/names"
	"github.com/portsnare/portsnare/outputs/runcmd"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// newEnforcement returns how bans are put in force. Where nobody is banned, the
// ledger may still have to remember who was reported.
func (d *daemon) newEnforcement() (e outputs.Enforcement, err error) {
	if d.config.Ban.Evidence != conf.EvidenceOff {
		tcp, _ := d.config.Opened()
		if d.guard, err = guard.Watch(guard.Config{Traps: tcp}, d.log); err != nil {
			return e, fmt.Errorf("find out who must never be banned: %w", err)
		}
		e.Spared = d.guard.Spared
		classic := newClassicBans(d.config, d.makeHostsDeny, d.mode)
		e.Outputs = []outputs.NamedBans{{Name: "classic", Output: classic}}
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
	}
	return e, nil
}

// A ledger remembers banned sources in PortSentry's file.
type ledger struct{ *blockfile.File }

func (l ledger) Add(ev *detector.Event) error {
	return l.File.Add(logline.BlockedOf(ev, time.Local))
}

// newNaming returns what finds out the names of sources, or nil.
func newNaming(cfg conf.Config) *names.Stage {
	if !cfg.Log.Resolve {
		return nil
	}
	return names.New(names.Options{Within: cfg.Log.ResolveWithin})
}
