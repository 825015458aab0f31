// Package stamp formats the time stamps of records. Records come by the
// thousand within a second, so a [Formatter] formats each second once and then
// only puts in the fraction.
package stamp

import (
	"strings"
	"time"
)

// A Formatter formats times after one layout. It is not safe for concurrent
// use.
type Formatter struct {
	layout        string
	zone          *time.Location
	start, digits int // where the digits of the fraction stand; none: 0

	formatted bool
	second    int64  // the Unix time that text shows
	text      []byte // with a fraction of zero
}

// New returns a Formatter for a layout of package time, in which a fraction of
// a second is written ".000" with up to nine zeros, and everything before the
// fraction is of fixed width.
func New(layout string, zone *time.Location) *Formatter {
	f := &Formatter{layout: layout, zone: zone}
	if point := strings.Index(layout, ".0"); point >= 0 {
		f.start = point + 1
		fraction := layout[f.start:]
		f.digits = len(fraction) - len(strings.TrimLeft(fraction, "0"))
	}
	return f
}

// Append appends the stamp of t to dst. A year that four digits cannot show,
// as a crafted capture file may have it, becomes 0 or 9999, so that the width
// of a stamp never changes.
func (f *Formatter) Append(dst []byte, t time.Time) []byte {
	if second := t.Unix(); !f.formatted || second != f.second {
		f.formatted, f.second = true, second
		whole := clamp(t.In(f.zone))
		whole = whole.Add(-time.Duration(whole.Nanosecond()))
		f.text = whole.AppendFormat(f.text[:0], f.layout)
	}
	begin := len(dst)
	dst = append(dst, f.text...)
	fraction := dst[begin+f.start : begin+f.start+f.digits]
	n := t.Nanosecond()
	for range 9 - f.digits {
		n /= 10
	}
	for i := len(fraction) - 1; i >= 0; i-- {
		fraction[i] = byte('0' + n%10)
		n /= 10
	}
	return dst
}

func clamp(t time.Time) time.Time {
	switch {
	case t.Year() < 0:
		return time.Date(0, 1, 1, 0, 0, 0, 0, t.Location())
	case t.Year() > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 0, t.Location())
	}
	return t
}
