package ggufview
import ("testing";"os";"path/filepath";"time";"fmt")
func TestZZ(t *testing.T){
 for _,n:=range filepath.SplitList(os.Getenv("ZZ")) {
  b,_:=os.ReadFile(n); f,err:=Parse(b,int64(len(b))); if err!=nil{t.Fatal(err)}
  t0:=time.Now(); o:=f.AppendMap(nil, filepath.Base(n)); fmt.Println(n,len(o),time.Since(t0))
  os.WriteFile("/tmp/w6/"+filepath.Base(n)+".svg",o,0o644)
 }
}
