package capture

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

const (
	// maxLingerers bounds the connections that wait for their peers. A newer
	// one takes the place of the oldest.
	maxLingerers = 256

	// bannerPatience is how long a peer may take for the banner.
	bannerPatience = time.Second
)

// lingerers are connections that got the banner and the end of the stream, and
// wait for the peer's. To close at once would have the kernel answer whatever
// the peer still sends with a reset, and on many systems a reset discards the
// banner unread.
//
// It is a ring in the order of age: those from first to next, without the gaps
// that are closed already.
type lingerers struct {
	stats       *trapCounters
	ring        [maxLingerers]lingerer
	first, next uint64
}

type lingerer struct {
	fd    int // -1: closed
	until time.Time
}

// place returns where the next one will be.
func (l *lingerers) place() uint16 { return uint16(l.next % maxLingerers) }

// add lets the connection fd linger.
func (l *lingerers) add(fd int, now time.Time) {
	if l.next-l.first == maxLingerers {
		if old := &l.ring[l.first%maxLingerers]; old.fd >= 0 {
			l.stats.cutShort.Add(1)
			old.reset()
		}
		l.first++
	}
	l.ring[l.place()] = lingerer{fd: fd, until: now.Add(bannerPatience)}
	l.next++
}

// patience ends those whose time is over and returns how long the next one may
// stay, or a negative duration if there is none.
func (l *lingerers) patience(now time.Time) time.Duration {
	for ; l.first < l.next; l.first++ {
		oldest := &l.ring[l.first%maxLingerers]
		if oldest.fd < 0 {
			continue
		}
		if left := oldest.until.Sub(now); left > 0 {
			return left
		}
		l.stats.bannerTimeouts.Add(1)
		oldest.reset()
	}
	return -1
}

// drain throws away what a peer sent, and closes the connection if that was
// all. One read at a time leaves others their turn.
func (l *lingerers) drain(place int, scratch []byte) {
	c := &l.ring[place]
	if c.fd < 0 {
		return // closed since the event was reported
	}
	n, err := unix.Read(c.fd, scratch)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
	case err != nil, n == 0:
		c.close()
	}
}

// hangUp closes all.
func (l *lingerers) hangUp() {
	for ; l.first < l.next; l.first++ {
		l.ring[l.first%maxLingerers].close()
	}
}

func (c *lingerer) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
}

// reset closes without leaving the kernel anything to keep for a slow peer.
func (c *lingerer) reset() {
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	c.close()
}

const (
	// answersPerSecond bounds the banners sent in answer to datagrams.
	answersPerSecond = 100

	// answerPause is how long a source gets no second one.
	answerPause = time.Second
)

// answers decides which datagrams are answered with the banner. Their sources
// can be forged, so the banner must neither strengthen an attack on a third
// party nor start a conversation between two programs that answer everything:
//
//   - A host, or an IPv6 network of /64, gets one a second. Such a
//     conversation has one datagram under way and ends with the first that is
//     not answered.
//   - All together get 100 a second. So what has to be remembered is bounded.
//   - As in QUIC (RFC 9000, section 8.1), an answer has at most three times
//     the length of what it answers, IP and UDP header included, and of a
//     frame no less than Ethernet's minimum.
type answers struct {
	ring [answersPerSecond]answer
	next int
}

type answer struct {
	to netip.Prefix
	at time.Time
}

// allow reports whether p, a datagram with n bytes, may be answered with banner
// bytes, and if so takes note of it.
func (a *answers) allow(p *detector.Probe, n, banner int) bool {
	const (
		headers      = 28 // of IPv4 and UDP; IPv6's are longer, to no one's harm
		minimumFrame = 46 // what an Ethernet frame carries at the least
	)
	if banner+headers > 3*max(n+headers, minimumFrame) {
		return false
	}
	bits := 32
	if p.Source.Addr().Is6() {
		bits = 64
	}
	to, err := p.Source.Addr().Prefix(bits)
	if err != nil {
		return false
	}
	oldest := &a.ring[a.next]
	if p.At.Sub(oldest.at) < time.Second {
		return false
	}
	for i := range a.ring {
		if r := &a.ring[i]; r.to == to && p.At.Sub(r.at) < answerPause {
			return false
		}
	}
	*oldest = answer{to: to, at: p.At}
	a.next = (a.next + 1) % len(a.ring)
	return true
}
