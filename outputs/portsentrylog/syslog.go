package portsentrylog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/stamp"
	"github.com/portsnare/portsnare/parsers/logline"
)

const (
	// priority is facility daemon (3), severity notice (5), as PortSentry's.
	priority = "<29>"

	// syslogStamp is the local time of RFC 3164, which is what every daemon
	// behind /dev/log understands; RFC 5424 is not.
	syslogStamp = "Jan _2 15:04:05"

	// syslogPatience bounds what a syslog daemon that reads nothing costs for
	// each delivery. The standard library's client would wait for ever.
	syslogPatience = time.Second
)

// SyslogOptions tune a [Syslog]. The zero value is good for a daemon.
type SyslogOptions struct {
	Socket string         // default /dev/log
	Tag    string         // default "portsnare"; readers know lines by it
	PID    int            // default this process
	Zone   *time.Location // of the time stamps; default local time
}

// Syslog is an output to the local syslog daemon. It connects at the first
// delivery and again after a failure, so the daemon may come and go.
type Syslog struct {
	socket string
	ident  string // "TAG[PID]: "
	stamps *stamp.Formatter

	conn   *net.UnixConn // nil while not connected
	stream bool          // lines end in a newline
	buf    []byte

	// sent is the sequence number of the last event sent of a batch that
	// failed, so that its lines are not doubled when it comes again. Zero:
	// nothing of the next batch is sent.
	sent uint64
}

// NewSyslog returns an output to syslog. It does not connect yet.
func NewSyslog(o SyslogOptions) *Syslog {
	tag, pid := cmp.Or(o.Tag, "portsnare"), cmp.Or(o.PID, os.Getpid())
	return &Syslog{
		socket: cmp.Or(o.Socket, "/dev/log"),
		ident:  tag + "[" + strconv.Itoa(pid) + "]: ",
		stamps: stamp.New(syslogStamp, cmp.Or(o.Zone, time.Local)),
	}
}

// Deliver sends a line for each probe, and waits a second at most for a daemon
// that does not read. After an error the same events must come again, first in
// the next batch; those already sent are then passed over.
func (s *Syslog) Deliver(ctx context.Context, events []detector.Event) error {
	next := s.alreadySent(events)
	err := s.connect(ctx)
	for err == nil && next < len(events) {
		if err = s.send(&events[next]); err == nil {
			next++
		}
	}
	if err == nil {
		s.sent = 0
		return nil
	}
	if next > 0 {
		s.sent = events[next-1].Sequence
	}
	return errors.Join(fmt.Errorf("syslog: %w", err), s.Close())
}

// alreadySent returns how many of the first events were sent before.
func (s *Syslog) alreadySent(events []detector.Event) int {
	if s.sent == 0 {
		return 0
	}
	return 1 + slices.IndexFunc(events, func(ev detector.Event) bool { return ev.Sequence == s.sent })
}

// Close disconnects. The next delivery connects again.
func (s *Syslog) Close() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	return err
}

// connect makes sure of a connection and gives it until the deadline.
func (s *Syslog) connect(ctx context.Context) error {
	deadline := time.Now().Add(syslogPatience)
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(deadline) {
		deadline = earlier
	}
	if s.conn == nil {
		if err := s.dial(ctx, deadline); err != nil {
			return err
		}
	}
	return s.conn.SetWriteDeadline(deadline)
}

// dial connects to a datagram socket, or to a stream socket if it is one.
func (s *Syslog) dial(ctx context.Context, deadline time.Time) error {
	dialer := net.Dialer{Deadline: deadline}
	conn, err := dialer.DialContext(ctx, "unixgram", s.socket)
	s.stream = errors.Is(err, syscall.EPROTOTYPE)
	if s.stream {
		conn, err = dialer.DialContext(ctx, "unix", s.socket)
	}
	if err != nil {
		return err
	}
	s.conn = conn.(*net.UnixConn)
	return nil
}

// send sends the line for ev, if it has one.
func (s *Syslog) send(ev *detector.Event) error {
	if !ev.IsProbe() {
		return nil
	}
	s.buf = append(s.buf[:0], priority...)
	s.buf = s.stamps.Append(s.buf, ev.At)
	s.buf = append(s.buf, ' ')
	s.buf = append(s.buf, s.ident...)
	s.buf = logline.AppendScan(s.buf, ev)
	if s.stream {
		s.buf = append(s.buf, '\n')
	}
	_, err := s.conn.Write(s.buf)
	return err
}
