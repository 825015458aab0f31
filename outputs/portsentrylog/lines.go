// Package portsentrylog reports probes in PortSentry 2's lines: as they are to
// a stream such as standard output, with a time stamp to a history file, and to
// syslog. Events about the daemon itself have no such line and are passed over.
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

// Lines is an output of one line for each probe.
type Lines struct {
	to     outputs.Appender
	format func(dst []byte, ev *detector.Event) []byte
	buf    []byte // kept from batch to batch
}

// NewLines returns an output of bare lines. The appender stays the caller's to
// close.
func NewLines(to outputs.Appender) *Lines {
	return &Lines{to: to, format: appendLine}
}

func appendLine(dst []byte, ev *detector.Event) []byte {
	return append(logline.AppendScan(dst, ev), '\n')
}

// NewHistory returns an output of history records, whose stamps show the time
// in zone; PortSentry shows local time. The appender stays the caller's to
// close.
func NewHistory(to outputs.Appender, zone *time.Location) *Lines {
	return &Lines{to: to, format: logline.NewHistory(zone).AppendRecord}
}

// Deliver appends the lines of all events at once, or none.
func (l *Lines) Deliver(_ context.Context, events []detector.Event) error {
	l.buf = l.buf[:0]
	for i := range events {
		if events[i].IsProbe() {
			l.buf = l.format(l.buf, &events[i])
		}
	}
	if len(l.buf) == 0 {
		return nil
	}
	return l.to.Append(l.buf)
}
