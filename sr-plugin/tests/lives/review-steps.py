# Run as root: mkdir -p /tmp/rv/m; sr-plugin install /tmp/rv/root --state /tmp/rv/run --worker-socket /tmp/rv/none --no-worker
# then: python3 review-steps.py fallocate:1 fallocate:2 pwrite64:20   ("missing" must be empty)
import subprocess,json,os,base64,sys,random
T='/tmp/wt-review-target/debug'; P='/tmp/rv/root/volume/org.xen.xapi.storage.vhd'; M='/tmp/rv/m'
def c(m,*a):
    r=subprocess.run([f'{P}/{m}','d',*a],capture_output=True,text=True)
    if r.returncode: raise Exception(m+str(a)+r.stderr)
    return json.loads(r.stdout)
def wr(v,off,n):
    subprocess.run([f'{T}/vhd-tool','--quiet','write','--offset',str(off),f'{M}/{v}.vhd'],input=os.urandom(n),check=True)
def content(k): return subprocess.run([f'{T}/vhd-tool','--quiet','read',f'{M}/{k}.vhd'],capture_output=True,check=True).stdout
def bits(a,b,U):
    x=base64.b64decode(c('Volume.list_changed_blocks',U,a,b,'0','-1')['bitmap'])
    return {i for i in range(len(x)*8) if x[i//8]&(0x80>>(i%8))}
def truth(a,b): return {i for i in range(len(a)//65536) if a[i*65536:(i+1)*65536]!=b[i*65536:(i+1)*65536]}
for call in sys.argv[1:]:
  call,n=call.split(':')
  subprocess.run(['umount',M],capture_output=True)
  subprocess.run(['mount','-t','tmpfs','-o','size=64m','none',M],check=True)
  U=open('/proc/sys/kernel/random/uuid').read().strip()
  c('SR.create','--configuration','uri','file://'+M,U,'n','d'); c('SR.attach','--configuration','uri','file://'+M,'--configuration','sr_uuid',U)
  V=c('Volume.create',U,'v','d',str(32<<20),'false')['key']
  c('Volume.enable_cbt',U,V)
  wr(V,0,3<<20); S1=c('Volume.snapshot',U,V)['key']
  wr(V,4<<20,8<<20); S2=c('Volume.snapshot',U,V)['key']
  wr(V,14<<20,6<<20)
  c('Volume.destroy',U,S2); c('SR.ls',U)
  subprocess.run([f'{T}/coalesce-worker','once','--help'],capture_output=True)
  st=os.statvfs(M); free=st.f_bavail*st.f_bsize
  with open(M+'/filler','wb') as f: f.write(b'x'*(free-int(4.5*(1<<20))))
  before=(content(S1),content(V))
  r=subprocess.run(['strace','-f','-qq','-o','/tmp/rv/tr','-e','trace='+call,'-e',f'inject={call}:signal=SIGKILL:when={n}',f'{T}/coalesce-worker','once',M],capture_output=True,text=True)
  js=os.listdir(M+'/.vhd')
  t=truth(*before); told=bits(S1,V,U)
  print(call,n,'rc',r.returncode,'journal',js,'same content',content(V)==before[1],'missing',sorted(t-told)[:50], r.stderr[-200:], r.stdout[-200:])
  S3=c('Volume.snapshot',U,V)['key']
  told=bits(S1,S3,U); print('   after snapshot: same',content(S3)==before[1],'missing',sorted(t-told)[:50])
  c('SR.detach',U)
