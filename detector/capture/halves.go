package capture

import (
	"net/netip"
	"time"
)

// A half is eight of the first sixteen bytes of a TCP segment that was cut
// between them: `nmap -f` does that, so that no fragment shows both the port
// and the flags. No other fragments need to be looked at together, because
// fragments are cut at multiples of eight bytes.
type half struct {
	of     datagramID
	at     time.Time
	second bool
	bytes  [8]byte
}

// datagramID tells the fragments of one datagram from those of all others
// (RFC 791, section 3.2; RFC 8200, section 4.5).
type datagramID struct {
	source, target netip.Addr
	id             uint32
}

// halves are those that wait for the other one. There are few, and the oldest
// makes room: nothing but a scan sends such fragments, and their other half
// comes right behind. A flood of them hides others as long as it lasts.
type halves struct {
	waiting [64]half
	next    int // the oldest
}

// halfPatience is as long as Linux waits for the fragments of a datagram
// (net.ipv4.ipfrag_time).
const halfPatience = 30 * time.Second

// join fills in whole and reports true if the other half of h was there before.
// Else h waits for it.
func (w *halves) join(h half, whole *[16]byte) bool {
	for i := range w.waiting {
		other := &w.waiting[i]
		if other.of.id != h.of.id || other.of != h.of || other.second == h.second {
			continue
		}
		if age := h.at.Sub(other.at); age < 0 || age > halfPatience {
			continue
		}
		first, second := h.bytes, other.bytes
		if h.second {
			first, second = second, first
		}
		copy(whole[:], first[:])
		copy(whole[8:], second[:])
		*other = half{}
		return true
	}
	w.waiting[w.next] = h
	w.next = (w.next + 1) % len(w.waiting)
	return false
}
