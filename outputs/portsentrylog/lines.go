// Package portsentrylog reports probes in PortSentry's words: in the lines of
// PortSentry 2, as they are to a stream such as standard output, with a time
// stamp to a history file, and to syslog; or in the records of PortSentry 1.2's
// history. Events about the daemon itself have no such line and are passed over.
package portsentrylog

import (
	"context"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/parsers/logline"
)

var (
	_ outputs.Output = (*Lines)(nil)
	_ outputs.Output = (*Syslog)(nil)
)

// Lines is an output of one line for each event that it tells of.
type Lines struct {
	to     outputs.Appender
	tells  func(ev *detector.Event) bool
	format func(dst []byte, ev *detector.Event) []byte
	buf    []byte // kept from batch to batch
}

// NewLines returns an output of one bare line for each probe. The appender stays the caller's to
// close.
func NewLines(to outputs.Appender) *Lines {
	return &Lines{to: to, tells: (*detector.Event).IsProbe, format: appendLine}
}

func appendLine(dst []byte, ev *detector.Event) []byte {
	return append(logline.AppendScan(dst, ev), '\n')
}

// NewHistory returns an output of PortSentry 2's history: one record for each
// probe, whose stamp shows the time in zone; PortSentry shows local time. The
// appender stays the caller's to close.
func NewHistory(to outputs.Appender, zone *time.Location) *Lines {
	return &Lines{to: to, tells: (*detector.Event).IsProbe, format: logline.NewHistory(zone).AppendRecord}
}

// NewHistory1 returns an output of PortSentry 1.2's history: one record for
// each probe of a source that has reached the trigger and is not ignored, with
// the time in zone; PortSentry shows local time. The appender stays the
// caller's to close.
func NewHistory1(to outputs.Appender, zone *time.Location) *Lines {
	format := func(dst []byte, ev *detector.Event) []byte {
		return append(logline.AppendBlocked(dst, ev, zone), '\n')
	}
	return &Lines{to: to, tells: reachedTrigger, format: format}
}

// reachedTrigger reports whether PortSentry 1.2 has a record for ev. Its record
// has no field to say that nothing should come of the probe, and Fail2Ban bans
// on the first one. It does not matter whether one of our own outputs banned:
// whoever reads the history is there to do it.
func reachedTrigger(ev *detector.Event) bool {
	return ev.IsProbe() && ev.Triggered == detector.True && ev.Ignored == detector.False
}

// Deliver appends the lines of all events at once, or none.
func (l *Lines) Deliver(_ context.Context, events []detector.Event) error {
	l.buf = l.buf[:0]
	for i := range events {
		if l.tells(&events[i]) {
			l.buf = l.format(l.buf, &events[i])
		}
	}
	if len(l.buf) == 0 {
		return nil
	}
	return l.to.Append(l.buf)
}
