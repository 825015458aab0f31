package outputapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// The benchmarks call a real process with mutual TLS, as the host does.

func BenchmarkDeliver(b *testing.B) {
	for _, n := range []uint64{1, 100, 1000} {
		b.Run(fmt.Sprint(n, " events"), func(b *testing.B) {
			client := startSink(b)
			events := eventsTo(n)
			for b.Loop() {
				if err := client.Deliver(b.Context(), "boot", events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkSetBans(b *testing.B) {
	client := startSink(b)
	bans := bansOf(100_000)
	for b.Loop() {
		if _, err := client.SetBans(b.Context(), bans); err != nil {
			b.Fatal(err)
		}
	}
}

func startSink(b *testing.B) *outputapi.Client {
	b.Helper()
	client, _ := start(b, moduleCommand(b, "sink"), hclog.NewNullLogger())
	if err := client.Configure(b.Context(), outputapi.Configuration{Settings: json.RawMessage("{}")}); err != nil {
		b.Fatal(err)
	}
	return client
}

// A sink takes everything and keeps nothing.
type sink struct{ aimless }

func (sink) Deliver(context.Context, []detector.Event) error { return nil }

func (sink) SetBans(context.Context, []detector.Ban) ([]outputapi.Result, error) { return nil, nil }

func (sink) ChangeBans(context.Context, []detector.Ban, []detector.Ban) ([]outputapi.Result, error) {
	return nil, nil
}
