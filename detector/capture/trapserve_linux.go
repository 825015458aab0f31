package capture

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

const (
	// trapEvents is how many sockets one look at the epoll instance returns.
	trapEvents = 128

	// trapTurn is how many connections or datagrams a socket may have taken
	// before the next one has its turn, so that a flood of one port does not
	// hide probes to others.
	trapTurn = 32

	// acceptPause is how long accepting rests when the host is short of
	// descriptors or memory. What waits in the kernel meanwhile is not lost.
	acceptPause = 50 * time.Millisecond
)

// A trapServer takes what arrives at traps. It belongs to one goroutine.
type trapServer struct {
	*Traps
	observe   Observer
	lingerers lingerers
	answers   answers
	warned    logLimit
	vanished  rateLimit // of reports
	events    [trapEvents]unix.EpollEvent
	control   [256]byte // for control messages
	data      [2048]byte
}

func newTrapServer(t *Traps, observe Observer) *trapServer {
	return &trapServer{Traps: t, observe: observe, lingerers: lingerers{stats: &t.stats}}
}

// serve waits for at most patience (for ever if it is negative) and takes what
// has arrived.
func (s *trapServer) serve(ctx context.Context, patience time.Duration) error {
	n, err := unix.EpollWait(s.epoll, s.events[:], milliseconds(patience))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	for i := range max(n, 0) {
		e := &s.events[i]
		fd, kind, number := int(e.Fd), trapKind(e.Pad>>16), uint16(e.Pad)
		switch kind {
		case trapWake:
			_, _ = unix.Read(fd, s.data[:]) // so that it can wake again
		case trapListener:
			s.accept(ctx, fd, number)
		case trapReceiver:
			s.receive(fd, number)
		case trapLingerer:
			s.lingerers.drain(int(number), s.data[:])
		}
	}
	return nil
}

// milliseconds rounds up, so that nobody waits in many short turns.
func milliseconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}

// accept takes connections to a trap port, or to anyPort.
func (s *trapServer) accept(ctx context.Context, listener int, port uint16) {
	for range trapTurn {
		fd, peer, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			s.failedToAccept(ctx, port, err)
			if isShortage(err) {
				return
			}
			continue // with accept(2), the error is the connection's
		}
		s.stats.accepted.Add(1)
		s.connection(fd, peer)
	}
}

func (s *trapServer) failedToAccept(ctx context.Context, port uint16, err error) {
	now := time.Now()
	s.stats.acceptFailures.Add(1)
	if s.warned.allow(now) {
		s.log.WithError(err).WithField("port", port).Warn("connection to a trap port failed before its source was known")
	}
	if isShortage(err) {
		pause(ctx, acceptPause)
		return
	}
	if s.vanished.allow(now, maxAcceptReports) {
		s.acceptFailed(port, err)
	}
}

// A rateLimit lets through so many a second. It is not safe for concurrent use.
type rateLimit struct {
	second time.Time // when it began
	passed int       // in it
}

func (l *rateLimit) allow(now time.Time, most int) bool {
	if now.Sub(l.second) >= time.Second {
		*l = rateLimit{second: now}
	}
	l.passed++
	return l.passed <= most
}

func isShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// connection observes one connection and answers or closes it.
func (s *trapServer) connection(fd int, peer unix.Sockaddr) {
	local, err := unix.Getsockname(fd)
	if err != nil {
		s.stats.acceptFailures.Add(1)
		_ = unix.Close(fd)
		return
	}
	target := addrPort(local, fd)
	if !s.tcp.Contains(target.Port()) {
		_ = unix.Close(fd) // from this host to the listener for many ports itself
		return
	}
	decision := s.observe(detector.Probe{
		At:        time.Now(),
		Source:    addrPort(peer, fd),
		Target:    target,
		Proto:     detector.TCP,
		Technique: detector.TechniqueConnect,
		Proof:     detector.ProofHandshake,
	})
	if !decision.Banner || len(s.banner) == 0 || !s.greet(fd) {
		_ = unix.Close(fd)
	}
}

// greet sends the banner and keeps the connection until the peer has taken it.
// It reports false if there is nothing to keep.
func (s *trapServer) greet(fd int) bool {
	if n, err := unix.Write(fd, s.banner); err != nil || n < len(s.banner) {
		return false // the peer is gone, or the kernel is short of memory
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return false
	}
	if err := s.poll(fd, trapLingerer, s.lingerers.place()); err != nil {
		return false
	}
	s.lingerers.add(fd, time.Now())
	return true
}

// receive takes datagrams to a trap port, or to anyPort.
func (s *trapServer) receive(fd int, port uint16) {
	for range trapTurn {
		// With MSG_TRUNC, n is the datagram's length, whatever fits.
		n, controlLen, _, peer, err := unix.Recvmsg(fd, s.data[:], s.control[:], unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || peer == nil {
			return // nothing left, or an error that the next look at it shows again
		}
		s.datagram(fd, port, peer, n, s.control[:controlLen])
	}
}

// datagram observes one datagram of n bytes and perhaps answers it.
func (s *trapServer) datagram(fd int, port uint16, peer unix.Sockaddr, n int, control []byte) {
	to, ok := parsePacketInfo(control)
	if to.lost > 0 {
		s.stats.lost.Add(uint64(to.lost - s.lost[fd])) // also right when it has wrapped around
		s.lost[fd] = to.lost
	}
	if port == anyPort {
		port = to.port
	}
	if !ok || to.many {
		s.stats.sentToMany.Add(1)
		return
	}
	if !s.udp.Contains(port) {
		return // from this host to the socket for many ports itself
	}
	s.stats.datagrams.Add(1)
	target := to.addr
	if target.Is6() && target.IsLinkLocalUnicast() {
		target = target.WithZone(interfaceName(fd, to.index))
	}
	p := detector.Probe{
		At:        time.Now(),
		Source:    addrPort(peer, fd),
		Target:    netip.AddrPortFrom(target, port),
		Proto:     detector.UDP,
		Technique: detector.TechniqueConnect,
	}
	if !s.observe(p).Banner || len(s.banner) == 0 {
		return
	}
	if s.answersAll(p.Source.Port()) || !s.answers.allow(&p, n, len(s.banner)) {
		s.stats.bannersHeld.Add(1)
		return
	}
	// From the address that was probed; whether it arrives is the source's business.
	if s.rules == nil {
		_, _ = unix.SendmsgN(fd, s.banner, to.from(), peer, unix.MSG_DONTWAIT)
		return
	}
	_ = s.sender.send(&to, p.Source, s.banner)
}

// answersAll reports whether what sends from a port may be another daemon like
// this one, or a service that answers whatever it gets.
func (s *trapServer) answersAll(port uint16) bool {
	if s.rules == nil {
		return s.udp.Contains(port)
	}
	return port < 1024 // too many are trap ports to tell anything by it
}
