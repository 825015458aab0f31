package logline

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/portsnare/portsnare/detector"
)

// blockedStamp is the local time in a record of PortSentry 1.2, behind the same
// time in seconds since 1970.
const blockedStamp = "01/02/2006 15:04:05"

// A Blocked is what a record of PortSentry 1.2's history and blocked files
// says: a source reached the trigger.
type Blocked struct {
	At     time.Time  // to the second, in the zone of the writer
	Source netip.Addr // who probed, without a zone
	// Host is the resolved name of the source, which its owner chose: never
	// take an address from it. Empty: the record repeats the address.
	Host  string
	Proto detector.Proto
	Port  uint16 // that was tried
}

// BlockedOf returns the record for ev, with its time in zone. The event must tell
// of a probe.
func BlockedOf(ev *detector.Event, zone *time.Location) Blocked {
	return Blocked{
		At:     ev.At.In(zone),
		Source: sourceOf(ev),
		Host:   ev.Host,
		Proto:  ev.Probe.Proto,
		Port:   ev.Probe.Target.Port(),
	}
}

// AppendBlocked appends the record for ev, with its time in zone and without a
// newline, to dst. The event must tell of a probe. It allocates nothing but
// room in dst.
func AppendBlocked(dst []byte, ev *detector.Event, zone *time.Location) []byte {
	b := BlockedOf(ev, zone)
	return b.Append(dst)
}

// Append appends the record, without a newline, to dst.
func (b *Blocked) Append(dst []byte) []byte {
	dst = strconv.AppendInt(dst, b.At.Unix(), 10)
	dst = append(dst, " - "...)
	dst = b.At.AppendFormat(dst, blockedStamp)
	dst = append(dst, " Host: "...)
	dst = appendHostAndSource(dst, b.Host, b.Source)
	dst = append(dst, " Port: "...)
	dst = strconv.AppendUint(dst, uint64(b.Port), 10)
	dst = append(dst, ' ')
	dst = append(dst, b.Proto.String()...)
	return append(dst, " Blocked"...)
}

// appendHostAndSource appends how PortSentry 1.2 names a source: the host, or the
// address again if that is empty, a slash and the address. Readers take the
// address from behind the last slash, so the host before it is reduced to what
// host names are made of.
func appendHostAndSource(dst []byte, host string, source netip.Addr) []byte {
	if host == "" {
		dst = source.AppendTo(dst)
	} else {
		start := len(dst)
		dst = reduceHost(append(dst, host...), start)
	}
	dst = append(dst, '/')
	return source.AppendTo(dst)
}

// ParseBlocked reads a record of PortSentry 1.2 without its newline. It takes
// exactly what [Blocked.Append] writes for ports from 1 on and four-digit years.
func ParseBlocked(record string) (Blocked, error) {
	r := reader{what: "blocked record", rest: record}
	epoch := field(&r, "", " - ", parseEpoch)
	date := field(&r, "", " Host: ", parseDate)
	host := field(&r, "", "/", parseHost)
	source := field(&r, "", " Port: ", parseSource)
	port := field(&r, "", " ", parsePort)
	proto := field(&r, "", " Blocked", parseProto)
	if err := r.end(); err != nil {
		return Blocked{}, err
	}
	east := date.Unix() - epoch
	if east <= -secondsPerDay || east >= secondsPerDay {
		return Blocked{}, fmt.Errorf("blocked record: %d and %q are different times", epoch, date.Format(blockedStamp))
	}
	if host == source.String() {
		host = ""
	}
	return Blocked{
		At:     time.Unix(epoch, 0).In(time.FixedZone("", int(east))),
		Source: source,
		Host:   host,
		Proto:  proto,
		Port:   port,
	}, nil
}

// secondsPerDay is more than any time zone is away from UTC.
const secondsPerDay = 24 * 60 * 60

// maxEpoch is far beyond the years that a record can show.
const maxEpoch = 1 << 40

func parseEpoch(text string) (int64, bool) {
	epoch, err := strconv.ParseInt(text, 10, 64)
	ok := err == nil && -maxEpoch < epoch && epoch < maxEpoch && strconv.FormatInt(epoch, 10) == text
	return epoch, ok
}

// parseDate returns the time that text would be in UTC. The record does not
// name its zone.
func parseDate(text string) (time.Time, bool) {
	date, err := time.Parse(blockedStamp, text)
	return date, err == nil && date.Format(blockedStamp) == text
}
