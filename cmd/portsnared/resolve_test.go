package main

import (
	"strings"
	"testing"
	"time"

	"github.com/portsnare/portsnare/internal/nettest"
)

// RESOLVE_HOST=1 puts the name of a source where its address is repeated.
func TestNamesOfSources(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, `RESOLVE_HOST="1"`+"\n")
	s.write(t, config1, strings.Replace(s.read(t, config1), `RESOLVE_HOST = "0"`+"\n", "", 1))
	s.write(t, "etc/hosts", "192.0.2.1 scanner.example.net\n2001:db8::1 x]_(forged)\n")
	s.write(t, "portsentry.conf", commonConfig+portEleven+`RESOLVE_HOST="1"`+"\n")

	two := s.start(t, strings.Fields("-c portsentry.conf")...)
	two.Stdout.WaitLine(t, "is now active")
	s.probe(t, "tcp", s.target.IPv4, 11)
	two.Stdout.WaitLine(t, "Scan from: [192.0.2.1] (scanner.example.net) protocol: [TCP] port: [11]")
	nettest.WaitFor(t, "the history", func() bool {
		return strings.Contains(s.read(t, "portsentry.history"), " Scan from: [192.0.2.1] (scanner.example.net) protocol: [TCP]")
	})
	s.probe(t, "tcp", s.target.IPv6, 11) // has a name that would forge a field
	two.Stdout.WaitLine(t, "Scan from: [2001:db8::1] (2001:db8::1) protocol: [TCP] port: [11]")
	stopWithin(t, two, endLimit)

	s.begin(t, "-stcp")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "attackalert: TCP SYN/Normal scan from host: scanner.example.net/192.0.2.1 to TCP port: 11")
	nettest.WaitFor(t, "the history", func() bool {
		return strings.HasSuffix(s.read(t, history1), " Host: scanner.example.net/192.0.2.1 Port: 11 TCP Blocked\n")
	})
	s.end(t)
}

// A name server that does not answer keeps a line for a second, and nothing else.
func TestLinesWaitASecondForNames(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "etc/resolv.conf", "nameserver "+s.scanner.IPv4.String()+"\n")
	s.scanner.Listen(t, "udp", 53) // leaves unread what it gets
	s.write(t, "portsentry.conf", commonConfig+portEleven+`RESOLVE_HOST="1"`+"\n")
	s.begin(t)
	began := time.Now()
	const more = 20
	for range 1 + more {
		s.probe(t, "tcp", s.target.IPv4, 11)
	}
	waitLines(t, s.daemon.Stdout, 1+more, "Scan from: [192.0.2.1] (192.0.2.1) ")
	if took := time.Since(began); took < 500*time.Millisecond || took > 5*time.Second {
		t.Errorf("the lines came after %v, want about a second", took)
	}
	nettest.WaitFor(t, "the history", func() bool { return strings.Count(s.read(t, "portsentry.history"), "\n") > more })
	// Captured when it came, whenever its line was written.
	first, last := s.stampOf(t, 0), s.stampOf(t, more)
	if late := last.Sub(began); first.Before(began.Add(-time.Millisecond)) || late > time.Second {
		t.Errorf("the last probe was seen %v after the first was sent", late)
	}
	// Nor does it keep the daemon from ending.
	s.probe(t, "udp", s.target.IPv6, 11)
	s.end(t)
}

// stampOf returns when the probe of a record in the history was seen.
func (s *scenario) stampOf(t *testing.T, record int) time.Time {
	t.Helper()
	text, _, _ := strings.Cut(strings.Split(s.read(t, "portsentry.history"), "\n")[record], " ")
	at, err := time.Parse("2006-01-02T15:04:05.000-0700", text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}
