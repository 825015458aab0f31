package logline

import (
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/stamp"
)

// stampLayout is the time stamp of a history record. All 28 bytes count:
// readers find the line by them.
const stampLayout = "2006-01-02T15:04:05.000-0700"

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
// probe. A record has at most 1,023 bytes, which readers have room for.
func (h *History) AppendRecord(dst []byte, ev *detector.Event) []byte {
	dst = h.stamps.Append(dst, ev.At)
	dst = append(dst, ' ')
	dst = AppendScan(dst, ev)
	return append(dst, '\n')
}
