package outputtest

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// moduleName is what Portsnare takes for the name of a program.
var moduleName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

func (s *suite) testDescription(t *testing.T) {
	d, err := s.start(t).Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !moduleName.MatchString(d.Name) {
		t.Errorf("name %q is none that its block can have: small letters, digits, - and _", d.Name)
	}
	if d.Version == "" || d.Summary == "" || len(d.Summary) > 200 {
		t.Errorf("version %q, summary %q: want a version and a sentence of up to 200 bytes", d.Version, d.Summary)
	}
	for _, c := range d.Capabilities {
		if c != strings.ToLower(c) || strings.HasPrefix(c, "cap_") {
			t.Errorf("capability %q: want it as in a configuration, such as net_admin", c)
		}
	}
}

func (s *suite) testSettings(t *testing.T) {
	t.Run("checked", func(t *testing.T) {
		p := s.newPlace(t)
		c := p.configuration(t, nil)
		c.Check, c.StateDir = true, ""
		if err := s.start(t).Configure(t.Context(), c); err != nil {
			t.Error(err)
		}
		p.wantBanned(t)
	})
	t.Run("an unknown key is told", func(t *testing.T) {
		const key = "no_such_setting"
		p := s.newPlace(t)
		for _, check := range []bool{true, false} {
			c := p.configuration(t, map[string]any{key: 1})
			c.Check = check
			err := s.start(t).Configure(t.Context(), c)
			faults, _ := errors.AsType[outputapi.Faults](err)
			named := func(f outputapi.Fault) bool { return f.Key == key && f.Text != "" }
			if !slices.ContainsFunc(faults, named) {
				t.Errorf("Configure with the unknown key %s = %v, want a fault that names it", key, err)
			}
		}
		p.wantBanned(t)
	})
}

func (s *suite) testEvents(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		m := s.open(t, s.newPlace(t))
		if err := m.Deliver(t.Context(), "outputtest", nil); err != nil {
			t.Error(err)
		}
		s.close(t, m)
	})
	t.Run("the same ones again", func(t *testing.T) {
		m := s.open(t, s.newPlace(t))
		for range 2 {
			if err := m.Deliver(t.Context(), "outputtest", everyEvent()); err != nil {
				t.Error(err)
			}
		}
		s.close(t, m)
	})
	t.Run("its time is over", func(t *testing.T) {
		m := s.open(t, s.newPlace(t))
		inTime(t, "Deliver", func() { _ = m.Deliver(ended(t), "outputtest", everyEvent()) })
		if err := m.Deliver(t.Context(), "outputtest", everyEvent()); err != nil {
			t.Errorf("Deliver after one that ran out of time: %v", err)
		}
		s.close(t, m)
	})
}

// everyEvent returns an event of each action and, of probes, of both families.
func everyEvent() []detector.Event {
	var events []detector.Event
	for action := detector.ScanDetected; action <= detector.BanEnded; action++ {
		for _, b := range bans("192.0.2.7/32", "2001:db8::/64") {
			ev := detector.Event{
				At: b.Probe.At, Sequence: uint64(len(events)) + 1, Action: action,
				Probe: b.Probe, Triggered: detector.True, Blocked: detector.True,
				Host: "scanner.example", Reason: "as a test",
			}
			switch action {
			case detector.PacketsLost:
				ev.Probe, ev.Lost = detector.Probe{}, 3
			case detector.DaemonStarted, detector.DaemonStopped, detector.ConfigReloaded:
				ev.Probe = detector.Probe{}
			case detector.BanBegan, detector.BanEnded:
				ev.Probe, ev.Ban = detector.Probe{}, &b
			}
			events = append(events, ev)
		}
	}
	return events
}

// patience is how long a call may go on after its time is over.
const patience = 5 * time.Second

// inTime fails unless call returns soon.
func inTime(t *testing.T, name string, call func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s goes on %v after the end of its context", name, patience)
	}
}
