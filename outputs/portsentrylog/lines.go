// Package portsentrylog reports probes in PortSentry's words: in the lines of
// PortSentry 2 or 1.2, as they are to a stream such as standard output, and to
// syslog; and in the records of the history of either. Events about the daemon
// itself have no such line and are passed over.
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

// Format says whose lines are written.
type Format uint8

// The formats.
const (
	// PortSentry2 has one line for each probe.
	PortSentry2 Format = iota
	// PortSentry1 is PortSentry 1.2's: up to three lines for each probe of a
	// source that has reached the trigger and is not ignored.
	PortSentry1
)

// form returns how f reports a probe.
func (f Format) form() form {
	if f == PortSentry1 {
		return form{tells: reachedTrigger, append: logline.AppendAlert}
	}
	return form{tells: (*detector.Event).IsProbe, append: appendScan}
}

func appendScan(dst []byte, ev *detector.Event) []byte {
	return append(logline.AppendScan(dst, ev), '\n')
}

// A form is a way to report probes.
type form struct {
	tells  func(ev *detector.Event) bool                       // whether ev is reported
	append func(dst []byte, ev *detector.Event) (lines []byte) // each with a newline
}

// appendLines appends the lines for ev, or nothing.
func (f form) appendLines(dst []byte, ev *detector.Event) []byte {
	if !f.tells(ev) {
		return dst
	}
	return f.append(dst, ev)
}

// Lines is an output of lines, or of the records of a history.
type Lines struct {
	form
	to  outputs.Appender
	buf []byte // kept from batch to batch
}

// NewLines returns an output of bare lines. The appender stays the caller's to
// close.
func NewLines(to outputs.Appender, f Format) *Lines {
	return &Lines{to: to, form: f.form()}
}

// NewHistory returns an output of PortSentry 2's history: one record for each
// probe, whose stamp shows the time in zone; PortSentry shows local time. The
// appender stays the caller's to close.
func NewHistory(to outputs.Appender, zone *time.Location) *Lines {
	return &Lines{to: to, form: form{
		tells:  (*detector.Event).IsProbe,
		append: logline.NewHistory(zone).AppendRecord,
	}}
}

// NewHistory1 returns an output of PortSentry 1.2's history: one record for
// each probe of a source that has reached the trigger and is not ignored, with
// the time in zone; PortSentry shows local time. The appender stays the
// caller's to close.
func NewHistory1(to outputs.Appender, zone *time.Location) *Lines {
	record := func(dst []byte, ev *detector.Event) []byte {
		return append(logline.AppendBlocked(dst, ev, zone), '\n')
	}
	return &Lines{to: to, form: form{tells: reachedTrigger, append: record}}
}

// reachedTrigger reports whether PortSentry 1.2 has lines and a record for ev.
// They have no field to say that nothing should come of the probe, and Fail2Ban
// bans on the first record. It does not matter whether one of our own outputs
// banned: whoever reads the history is there to do it.
func reachedTrigger(ev *detector.Event) bool {
	return ev.IsProbe() && ev.Triggered == detector.True && ev.Ignored == detector.False
}

// Deliver appends the lines of all events at once, or none.
func (l *Lines) Deliver(_ context.Context, events []detector.Event) error {
	l.buf = l.buf[:0]
	for i := range events {
		l.buf = l.appendLines(l.buf, &events[i])
	}
	if len(l.buf) == 0 {
		return nil
	}
	return l.to.Append(l.buf)
}
