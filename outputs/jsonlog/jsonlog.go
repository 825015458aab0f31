// Package jsonlog writes events as JSON lines, one object for each event, with
// the field names of the Elastic Common Schema. docs/events.md describes them.
package jsonlog

import (
	"context"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/stamp"
	"github.com/portsnare/portsnare/outputs"
)

var _ outputs.Output = (*Writer)(nil)

// schema is the version of the record's own fields. It rises when a field
// changes its meaning or type, not when one is added.
const schema = 1

// Options say what a record tells of the daemon. Text is cut at 253 bytes and
// loses its control characters.
type Options struct {
	BootID   string // tells this run's events from any other's: event.id is BootID-Sequence
	Hostname string // empty: left out, so that a replay gives the same bytes everywhere
	Version  string // of Portsnare; empty: left out
}

// A Writer is an output of JSON lines.
type Writer struct {
	to     outputs.Appender
	stamps *stamp.Formatter
	buf    []byte // kept from batch to batch

	// What is the same in every record, as JSON.
	bootID     string // a string without its quotes
	daemon     string // ,"observer":{…  without the closing brace
	daemonHost string // ,"host":{…} or nothing
}

// New returns a Writer to an appender, which stays the caller's to close.
func New(to outputs.Appender, o Options) *Writer {
	w := &Writer{
		to:     to,
		stamps: stamp.New("2006-01-02T15:04:05.000000000Z", time.UTC),
		bootID: string(appendText(nil, o.BootID)),
		daemon: `,"observer":{"type":"ids","vendor":"portsnare","product":"portsnare"`,
	}
	if o.Version != "" {
		w.daemon += `,"version":"` + string(appendText(nil, o.Version)) + `"`
	}
	if o.Hostname != "" {
		name := string(appendText(nil, o.Hostname))
		w.daemon += `,"hostname":"` + name + `"`
		w.daemonHost = `,"host":{"name":"` + name + `"}`
	}
	return w
}

// Deliver appends the records of all events at once, or none.
func (w *Writer) Deliver(_ context.Context, events []detector.Event) error {
	w.buf = w.buf[:0]
	for i := range events {
		w.buf = w.appendRecord(w.buf, &events[i])
	}
	if len(w.buf) == 0 {
		return nil
	}
	return w.to.Append(w.buf)
}
