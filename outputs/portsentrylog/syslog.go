package portsentrylog

import (
	"bytes"
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
	// daemonFacility is the facility of PortSentry's messages, as they add it to
	// the severity.
	daemonFacility = 3 << 3

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
	Form   Form           // default that of PortSentry 2
	PID    int            // default this process
	Zone   *time.Location // of the time stamps; default local time
}

// Syslog is an output to the local syslog daemon. It connects at the first
// delivery and again after a failure, so the daemon may come and go.
type Syslog struct {
	form   Form
	socket string
	ident  string // "TAG[PID]: "
	stamps *stamp.Formatter

	conn   *net.UnixConn // nil while not connected
	stream bool          // messages end in a newline
	lines  []byte        // of one event
	buf    []byte        // one message

	// What was sent of a batch that failed, so that it is not doubled when the
	// batch comes again: everything up to the event with this sequence number
	// (zero: none), and this many lines of the next.
	sent      uint64
	sentLines int
}

// NewSyslog returns an output to syslog. It does not connect yet.
func NewSyslog(o SyslogOptions) *Syslog {
	tag, pid := cmp.Or(o.Tag, "portsnare"), cmp.Or(o.PID, os.Getpid())
	if o.Form == nil {
		o.Form = logline.PortSentry2{}.AppendLines
	}
	return &Syslog{
		form:   o.Form,
		socket: cmp.Or(o.Socket, "/dev/log"),
		ident:  tag + "[" + strconv.Itoa(pid) + "]: ",
		stamps: stamp.New(syslogStamp, cmp.Or(o.Zone, time.Local)),
	}
}

// Print sends one line about the daemon itself. Unlike an event it does not come
// again: after an error the line is lost.
func (s *Syslog) Print(ctx context.Context, severity logline.Severity, text string) error {
	line := logline.AppendLine(nil, severity, text)
	wasConnected := s.conn != nil
	err := s.print(ctx, line)
	if err != nil && wasConnected && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = s.print(ctx, line) // the daemon has started anew, as syslog(3) takes it
	}
	return err
}

func (s *Syslog) print(ctx context.Context, line []byte) error {
	err := s.connect(ctx)
	if err == nil {
		err = s.sendLine(time.Now(), line)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("syslog: %w", err), s.Close())
	}
	return nil
}

// Deliver sends the lines for each event, and waits a second at most for a daemon
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

// send sends the lines for ev that are not sent yet, a message each.
func (s *Syslog) send(ev *detector.Event) error {
	s.lines = s.form(s.lines[:0], ev)
	n := 0
	for line := range bytes.Lines(s.lines) {
		if n++; n <= s.sentLines {
			continue
		}
		if err := s.sendLine(ev.At, line); err != nil {
			return err
		}
		s.sentLines = n
	}
	s.sentLines = 0
	return nil
}

// sendLine sends one line, with its severity and its newline.
func (s *Syslog) sendLine(at time.Time, graded []byte) error {
	severity, line := graded[0]-'0', graded[1:]
	s.buf = append(s.buf[:0], '<')
	s.buf = strconv.AppendUint(s.buf, uint64(daemonFacility+severity), 10)
	s.buf = append(s.buf, '>')
	s.buf = s.stamps.Append(s.buf, at)
	s.buf = append(s.buf, ' ')
	s.buf = append(s.buf, s.ident...)
	if !s.stream {
		line = bytes.TrimSuffix(line, []byte{'\n'})
	}
	s.buf = append(s.buf, line...)
	_, err := s.conn.Write(s.buf)
	return err
}
