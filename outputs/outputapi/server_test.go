package outputapi

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// A plain module has no abilities; the types below add one each.
type plain struct{}

func (plain) Info() Info { return Info{Name: "plain"} }

func (plain) Configure(context.Context, Configuration) error { return nil }

type delivers struct {
	deliver func(context.Context, []detector.Event) error
}

func (d delivers) Deliver(ctx context.Context, events []detector.Event) error {
	return d.deliver(ctx, events)
}

type keeps struct{}

func (keeps) SetBans(context.Context, []detector.Ban) ([]Result, error) { return nil, nil }

func (keeps) ChangeBans(context.Context, []detector.Ban, []detector.Ban) ([]Result, error) {
	return nil, nil
}

type flushes struct{}

func (flushes) Flush(context.Context) error { return nil }

type watches struct{}

func (watches) WatchBans(ctx context.Context, _ func(BanChange) error) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAbilities(t *testing.T) {
	tests := []struct {
		module Module
		want   []Ability
	}{
		{struct{ plain }{}, nil},
		{struct {
			plain
			delivers
		}{}, []Ability{Delivers}},
		{struct {
			plain
			keeps
		}{}, []Ability{KeepsBans}},
		{struct {
			plain
			delivers
			keeps
		}{}, []Ability{Delivers, KeepsBans}},
		{struct {
			plain
			flushes
		}{}, []Ability{Flushes}},
		{struct {
			plain
			delivers
			flushes
		}{}, []Ability{Delivers, Flushes}},
		{struct {
			plain
			keeps
			flushes
		}{}, []Ability{KeepsBans, Flushes}},
		{struct {
			plain
			delivers
			keeps
			flushes
		}{}, []Ability{Delivers, KeepsBans, Flushes}},
		{struct {
			plain
			watches
		}{}, []Ability{WatchesBans}},
		{struct {
			plain
			delivers
			watches
		}{}, []Ability{Delivers, WatchesBans}},
		{struct {
			plain
			keeps
			watches
		}{}, []Ability{KeepsBans, WatchesBans}},
		{struct {
			plain
			delivers
			keeps
			watches
		}{}, []Ability{Delivers, KeepsBans, WatchesBans}},
		{struct {
			plain
			flushes
			watches
		}{}, []Ability{Flushes, WatchesBans}},
		{struct {
			plain
			delivers
			flushes
			watches
		}{}, []Ability{Delivers, Flushes, WatchesBans}},
		{struct {
			plain
			keeps
			flushes
			watches
		}{}, []Ability{KeepsBans, Flushes, WatchesBans}},
		{struct {
			plain
			delivers
			keeps
			flushes
			watches
		}{}, []Ability{Delivers, KeepsBans, Flushes, WatchesBans}},
	}
	for _, tt := range tests {
		var names []string
		for _, a := range tt.want {
			names = append(names, string(a))
		}
		t.Run(strings.Join(names, " and "), func(t *testing.T) {
			useful := len(tt.want) > 1 || len(tt.want) == 1 && tt.want[0] != Flushes
			answer, err := newServer(tt.module).Describe(t.Context(), nil)
			if (err == nil) != useful {
				t.Fatalf("error %v, want one: %t", err, !useful)
			}
			if err != nil {
				return
			}
			got, err := toDescription(answer)
			if diff := cmp.Diff(tt.want, got.Abilities); err != nil || diff != "" {
				t.Errorf("unexpected abilities: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// ready returns a configured server of a module that delivers so.
func ready(t *testing.T, deliver func(context.Context, []detector.Event) error) *server {
	t.Helper()
	s := newServer(struct {
		plain
		delivers
		flushes
	}{delivers: delivers{deliver}})
	if _, err := s.Configure(t.Context(), &outputv1.ConfigureRequest{Settings: "{}"}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEventsOfALaterVersionAreLeft(t *testing.T) {
	var got []uint64
	s := ready(t, func(_ context.Context, events []detector.Event) error {
		for _, ev := range events {
			got = append(got, ev.Sequence)
		}
		return nil
	})
	tests := map[string]struct {
		actions []outputv1.Action
		want    []uint64
	}{
		"among others":  {[]outputv1.Action{1, 99, 2}, []uint64{1, 3}},
		"all there are": {[]outputv1.Action{99, 98}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got = nil
			request := &outputv1.DeliverRequest{LastSequence: uint64(len(tt.actions))}
			for i, action := range tt.actions {
				request.Events = append(request.Events, &outputv1.Event{Sequence: uint64(i + 1), Action: action})
			}
			answer, err := s.Deliver(t.Context(), request)
			if err != nil || answer.GetAcceptedThrough() != request.GetLastSequence() {
				t.Errorf("accepted through %d, %v; want %d", answer.GetAcceptedThrough(), err, request.GetLastSequence())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("delivered %d, want %d", got, tt.want)
			}
		})
	}
}

func TestRequestsThatBreakTheProtocol(t *testing.T) {
	s := ready(t, func(context.Context, []detector.Event) error {
		t.Error("the module got it")
		return nil
	})
	tooMany := &outputv1.DeliverRequest{LastSequence: maxEvents + 1}
	for i := range maxEvents + 1 {
		tooMany.Events = append(tooMany.Events, &outputv1.Event{Sequence: uint64(i + 1), Action: 1})
	}
	tests := map[string]*outputv1.DeliverRequest{
		"nothing":         {},
		"too many":        tooMany,
		"no sequence":     {Events: []*outputv1.Event{{Action: 1}}},
		"another last":    {Events: []*outputv1.Event{{Action: 1, Sequence: 1}}, LastSequence: 2},
		"a broken event":  {Events: []*outputv1.Event{{Action: 1, Sequence: 1, Probe: &outputv1.Probe{Protocol: 256}}}, LastSequence: 1},
		"an absent event": {Events: []*outputv1.Event{nil}, LastSequence: 1},
	}
	for name, request := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := s.Deliver(t.Context(), request); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestCallsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		inside := 0
		s := ready(t, func(context.Context, []detector.Event) error {
			inside++
			defer func() { inside-- }()
			if inside > 1 {
				t.Error("two deliveries at a time")
			}
			<-release
			return nil
		})
		request := &outputv1.DeliverRequest{Events: []*outputv1.Event{{Sequence: 1, Action: 1}}, LastSequence: 1}
		done := make(chan error)
		for range 2 {
			go func() {
				_, err := s.Deliver(t.Context(), request)
				done <- err
			}()
		}
		synctest.Wait()

		// One is in the module, one waits; who does not want to wait need not.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Deliver(ctx, request); err == nil || !strings.Contains(err.Error(), "waiting for an earlier call") {
			t.Errorf("a third delivery: %v", err)
		}
		if _, err := s.Flush(ctx, nil); err == nil {
			t.Error("flushed during a delivery")
		}
		for range 2 {
			release <- struct{}{}
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Flush(t.Context(), nil); err != nil {
			t.Errorf("flushing afterwards: %v", err)
		}
	})
}

func TestNoTellingAfterTheEnd(t *testing.T) {
	sent := 0
	tell := &teller{send: func(*outputv1.BanChange) error { sent++; return nil }}
	if err := tell.tell(BanChange{Whole: true}); err != nil || sent != 1 {
		t.Errorf("%v, sent %d messages; want one", err, sent)
	}
	tell.close()
	if err := tell.tell(BanChange{}); err == nil || sent != 1 {
		t.Errorf("%v, sent %d messages after the end", err, sent-1)
	}
}

func TestDecode(t *testing.T) {
	tests := map[string]struct {
		settings string
		want     Faults
	}{
		"as wanted":   {settings: `{"url":"http://127.0.0.1/","retry":{"limit":3}}`},
		"nothing":     {},
		"unknown key": {`{"uri":"x"}`, Faults{{Key: "uri", Text: "unknown key"}}},
		"wrong type":  {`{"retry":{"limit":"3"}}`, Faults{{Key: "retry.limit", Text: "string where int is wanted"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var to struct {
				URL   string `json:"url"`
				Retry struct {
					Limit int `json:"limit"`
				} `json:"retry"`
			}
			err := Configuration{Settings: json.RawMessage(tt.settings)}.Decode(&to)
			if tt.want == nil && err != nil || tt.want != nil && !cmp.Equal(err, error(tt.want)) {
				t.Errorf("error %#v, want %#v", err, tt.want)
			}
		})
	}
}
