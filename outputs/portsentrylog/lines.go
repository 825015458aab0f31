// Package portsentrylog writes PortSentry's lines about events, of PortSentry 2
// or 1.2: to streams such as standard output, and to syslog; and the records of
// the history of either.
package portsentrylog

import (
	"bytes"
	"context"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/parsers/logline"
)

var (
	_ outputs.Output = (*Lines)(nil)
	_ outputs.Output = (*History)(nil)
	_ outputs.Output = (*Syslog)(nil)
)

// A Form appends the lines about ev, each with its severity before it and a
// newline behind, or nothing: [logline.PortSentry2.AppendLines] or
// [logline.PortSentry1.AppendLines].
type Form func(dst []byte, ev *detector.Event) []byte

// Lines is an output of bare lines.
type Lines struct {
	form       Form
	out, fault outputs.Appender

	// Kept from batch to batch: what the form says, and that without severities.
	graded, usual, faults []byte
}

// NewLines returns an output of lines to out, those about errors to fault. The
// appenders stay the caller's to close, and may be the same.
func NewLines(out, fault outputs.Appender, form Form) *Lines {
	return &Lines{form: form, out: out, fault: fault}
}

// Deliver appends the lines of all events at once, or none. That fault takes no
// lines is no error: there is nobody left to tell.
func (l *Lines) Deliver(_ context.Context, events []detector.Event) error {
	l.usual, l.faults = l.usual[:0], l.faults[:0]
	for i := range events {
		l.append(&events[i])
	}
	if len(l.usual) > 0 {
		if err := l.out.Append(l.usual); err != nil {
			return err
		}
	}
	if len(l.faults) > 0 {
		_ = l.fault.Append(l.faults)
	}
	return nil
}

// append sorts the lines about ev.
func (l *Lines) append(ev *detector.Event) {
	l.graded = l.form(l.graded[:0], ev)
	for rest := l.graded; len(rest) > 0; {
		line := rest[:bytes.IndexByte(rest, '\n')+1]
		rest = rest[len(line):]
		if logline.Severity(line[0]) == logline.Error && l.fault != l.out {
			l.faults = append(l.faults, line[1:]...)
		} else {
			l.usual = append(l.usual, line[1:]...)
		}
	}
}

// History is an output of the records of a history.
type History struct {
	tells  func(ev *detector.Event) bool
	append func(dst []byte, ev *detector.Event) []byte // with a newline
	to     outputs.Appender
	buf    []byte // kept from batch to batch
}

// NewHistory returns an output of PortSentry 2's history: one record for each
// probe, whose stamp shows the time in zone; PortSentry shows local time. The
// appender stays the caller's to close.
func NewHistory(to outputs.Appender, zone *time.Location) *History {
	return &History{to: to, tells: (*detector.Event).IsProbe, append: logline.NewHistory(zone).AppendRecord}
}

// NewHistory1 returns an output of PortSentry 1.2's history: one record for each
// source that has reached the trigger, as long as nothing went wrong and it was
// not known before, with the time in zone; PortSentry shows local time. The
// appender stays the caller's to close.
func NewHistory1(to outputs.Appender, zone *time.Location) *History {
	record := func(dst []byte, ev *detector.Event) []byte {
		return append(logline.AppendBlocked(dst, ev, zone), '\n')
	}
	return &History{to: to, tells: recordable1, append: record}
}

// recordable1 reports whether PortSentry 1.2 has a record for ev. Fail2Ban bans on
// the first one, so that there must be none for a source that was not to be
// banned.
func recordable1(ev *detector.Event) bool {
	done := ev.NoBlock == detector.True || ev.Blocked == detector.True
	return logline.Recordable(ev) && !ev.Held && done
}

// Deliver appends the records of all events at once, or none.
func (h *History) Deliver(_ context.Context, events []detector.Event) error {
	h.buf = h.buf[:0]
	for i := range events {
		if h.tells(&events[i]) {
			h.buf = h.append(h.buf, &events[i])
		}
	}
	if len(h.buf) == 0 {
		return nil
	}
	return h.to.Append(h.buf)
}
