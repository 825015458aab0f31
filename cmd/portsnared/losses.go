package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
)

// lossInterval is how often losses are looked for and reported.
const lossInterval = 10 * time.Second

// watchLosses reports packets and events that were dropped, at most once per
// interval: silence would look like peace.
func (d *daemon) watchLosses(ctx context.Context) error {
	tick := time.NewTicker(lossInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.reportLosses()
		case <-ctx.Done():
			return nil
		}
	}
}

// losses count what was dropped since the start.
type losses struct {
	packets uint64 // by the kernel, because its buffer was full
	blocks  uint64 // of that buffer that could not be read
	events  uint64 // by the dispatcher, because an output was too slow or failed
}

func (d *daemon) losses() losses {
	dispatcher := d.dispatcher.Stats()
	l := losses{events: dispatcher.Dropped}
	if d.socket != nil {
		socket := d.socket.Stats()
		l.packets, l.blocks = socket.Lost, socket.BrokenBlocks
	}
	if d.traps != nil {
		l.packets += d.traps.Stats().Lost
	}
	for _, o := range dispatcher.Outputs {
		l.events += o.Dropped
	}
	return l
}

// reportLosses reports what was lost, and what was left out on purpose, since it
// was last called. It is not safe for concurrent use.
func (d *daemon) reportLosses() {
	if n := d.outputs.leftOut.Load(); n != d.leftOut {
		d.log.WithField("lines", n-d.leftOut).Warn("probes have no line, more than log.per_second came")
		d.leftOut = n
	}
	now, before := d.losses(), d.reported
	if now == before {
		return
	}
	d.reported = now
	packets, blocks, events := now.packets-before.packets, now.blocks-before.blocks, now.events-before.events
	d.log.WithFields(logrus.Fields{"packets": packets, "blocks": blocks, "events": events}).Warn("packets or events lost")
	d.dispatcher.Tell(detector.Event{
		At: time.Now(), Action: detector.PacketsLost, Lost: packets + events,
		Reason: fmt.Sprintf("%d packets and %d unreadable buffers in the kernel, %d events on the way to outputs", packets, blocks, events),
	})
}

// logCounters says at the end what was seen, done and lost.
func (d *daemon) logCounters() {
	dispatcher := d.dispatcher.Stats()
	for _, o := range dispatcher.Outputs {
		if o.Dropped > 0 {
			d.log.WithFields(logrus.Fields{"output": o.Name, "events": o.Dropped}).Warn("output did not get all events")
		}
	}
	engine, lost := d.engine.Stats(), d.losses()
	fields := logrus.Fields{
		"probes": engine.Probes, "reported": engine.Reported, "in_use": engine.InUse,
		"packets_lost": lost.packets, "events_lost": lost.events,
		"sources_forgotten": engine.SourcesForgotten,
	}
	if d.guard != nil {
		bans := dispatcher.Bans
		fields["banned"], fields["bans_failed"], fields["spared"], fields["held"] = bans.Banned, bans.Failed, bans.Spared, bans.Held
	}
	if d.naming != nil {
		n := d.naming.Stats()
		fields["lookups"], fields["lookups_failed"], fields["names_refused"] = n.Lookups, n.Failed, n.Refused
		fields["names_late"], fields["sources_not_looked_up"] = n.Late+n.Hurried, n.Unasked
	}
	if d.services != nil {
		fields["service_check_failures"] = d.services.Failures()
	}
	if d.socket != nil {
		for reason, n := range d.socket.Stats().Undecoded {
			fields["undecoded_"+strings.ReplaceAll(reason, " ", "_")] = n
		}
	}
	if d.traps != nil {
		traps := d.traps.Stats()
		fields["connections"], fields["datagrams"], fields["sent_to_many"] = traps.Accepted, traps.Datagrams, traps.SentToMany
		fields["accept_failures"], fields["banner_timeouts"] = traps.AcceptFailures, traps.BannerTimeouts
		fields["banners_cut_short"], fields["banners_held"] = traps.CutShort, traps.BannersHeld
	}
	d.log.WithFields(fields).Info("portsnare has stopped")
}
