package logline

import (
	"fmt"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/stamp"
)

// stampLayout is the time stamp of a history record. All 28 bytes count:
// readers find the line by them.
const stampLayout = "2006-01-02T15:04:05.000-0700"

// MaxRecord is the most bytes of a history record, with its newline. Readers
// of PortSentry's history have buffers of this size.
const MaxRecord = 1023

// A History formats the records of PortSentry's history file: a time stamp, a
// blank, the Scan line and a newline. It is not safe for concurrent use.
type History struct {
	stamps *stamp.Formatter
}

// NewHistory returns a History whose stamps show the time in zone; PortSentry
// shows local time.
func NewHistory(zone *time.Location) *History {
	return &History{stamps: stamp.New(stampLayout, zone)}
}

// AppendRecord appends the record for ev to dst. The event must tell of a
// probe.
func (h *History) AppendRecord(dst []byte, ev *detector.Event) []byte {
	dst = h.stamps.Append(dst, ev.At)
	dst = append(dst, ' ')
	dst = AppendScan(dst, ev)
	return append(dst, '\n')
}

// ParseHistory reads a history record without its newline. The time has
// millisecond resolution and the zone offset of the stamp.
func ParseHistory(record string) (time.Time, Scan, error) {
	const width = len(stampLayout)
	if len(record) <= width || record[width] != ' ' {
		return time.Time{}, Scan{}, fmt.Errorf("history record: no time stamp of %d bytes: %q", width, record)
	}
	at, err := time.Parse(stampLayout, record[:width])
	if err != nil {
		return time.Time{}, Scan{}, fmt.Errorf("history record: %w", err)
	}
	s, err := Parse(record[width+1:])
	return at, s, err
}
